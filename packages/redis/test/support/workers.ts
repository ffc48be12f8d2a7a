/**
 * Processes of our own, for what only processes can show: to be killed, to be stopped, to have clocks that are wrong.
 */
import { Effect, FileSystem } from "effect"
import { ChildProcess, type ChildProcessSpawner } from "effect/process"
import * as Path from "node:path"
import type { Task } from "../workers/worker.ts"

const worker = (file: string) => Path.join(import.meta.dirname, "../workers", file)

export type Handle = ChildProcessSpawner.ChildProcessHandle

/** A process of its own for a file among the workers; it dies with the test. */
export const startFile = (file: string, task: object) =>
  ChildProcess.make(process.execPath, ["--import", worker("sources.ts"), worker(file), JSON.stringify(task)], {
    stdin: "pipe",
    stderr: "inherit",
    killSignal: "SIGKILL"
  })

export const start = (task: Task) => startFile("worker.ts", task)

export const kill = ({ kill }: Handle) => kill({ killSignal: "SIGKILL" })

/** What workers append to files of a directory, once more with each read. A last line without its end is none yet. */
export const makeLog = Effect.gen(function*() {
  const fs = yield* FileSystem.FileSystem
  const dir = yield* fs.makeTempDirectoryScoped({ prefix: "effect-lock-workers-" })
  return {
    file: (name: string) => `${dir}/${name}`,
    read: Effect.gen(function*() {
      const texts = yield* Effect.forEach(yield* fs.readDirectory(dir), (file) => fs.readFileString(`${dir}/${file}`))
      return texts.map((text) => text.slice(0, text.lastIndexOf("\n") + 1)).join("")
    })
  }
})
