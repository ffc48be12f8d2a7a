/**
 * The timeline that the demo prints while it runs: one line for each thing that happens, one lane for each worker.
 */
import { Lock } from "@effect-lock/core"
import { Clock, Console, Context, Effect, Layer, Logger } from "effect"
import { styleText } from "node:util"

/** Plain text where the output is not a terminal. */
const paint = (format: Parameters<typeof styleText>[0], text: string) =>
  styleText(format, text, { stream: process.stdout })

interface Lane {
  state: "idle" | "waiting" | "inside"
  since: number
}

export class Screen extends Context.Service<Screen, {
  /** Starts a new timeline. */
  readonly part: (title: string, explanation: string) => Effect.Effect<void>
  /** A worker asks for the lock. */
  readonly asks: (worker: string) => Effect.Effect<void>
  /** A worker is inside: shows its token, as the store knows it, and how long it waited since it asked. */
  readonly enters: (worker: string, what: string) => Effect.Effect<void>
  readonly does: (worker: string, what: string) => Effect.Effect<void>
  readonly leaves: (worker: string, what: string) => Effect.Effect<void>
  readonly note: (text: string) => Effect.Effect<void>
}>()("@effect-lock/examples/support/Screen") {
  static layer(options: { readonly workers: ReadonlyArray<string>; readonly key: string }) {
    const lanes = new Map<string, Lane>()
    let startedAt = 0

    const symbol = ({ state }: Lane) =>
      state === "inside" ? paint("green", "██") : state === "waiting" ? paint("yellow", "░░") : paint("dim", "··")

    const row = (text: string, token = "", waited = "") =>
      Effect.flatMap(Clock.currentTimeMillis, (now) => {
        const time = `${((now - startedAt) / 1000).toFixed(2)} s`.padStart(8)
        const inside = Array.from(lanes.values()).filter(({ state }) => state === "inside").length
        const columns = Array.from(lanes.values(), (lane) => `${symbol(lane)}   `).join("")
        const remark = inside > 1 ? paint("red", `${inside} inside at once`) : ""
        const line = `  ${columns} ${text.padEnd(22)} ${token.padEnd(16)} ${waited.padStart(8)}  ${remark}`
        return Console.log(paint("dim", time) + line.trimEnd())
      })

    const set = (worker: string, state: Lane["state"]) =>
      Effect.map(Clock.currentTimeMillis, (now) => {
        const before = lanes.get(worker)
        lanes.set(worker, { state, since: now })
        return now - (before?.since ?? now)
      })

    return Layer.effect(
      Screen,
      Effect.gen(function*() {
        const lock = yield* Lock.Lock
        const tokenOf = (worker: string) =>
          Effect.map(
            Effect.orDie(lock.inspect(options.key)),
            ({ holders }) => holders.find(({ metadata }) => metadata["worker"] === worker)?.token
          )

        return Screen.of({
          part: Effect.fnUntraced(function*(title, explanation) {
            startedAt = yield* Clock.currentTimeMillis
            for (const worker of options.workers) lanes.set(worker, { state: "idle", since: startedAt })
            const names = options.workers.map((name) => name.padEnd(5)).join("")
            yield* Console.log(`\n${paint("bold", title)}\n${explanation}\n`)
            yield* Console.log(paint("dim", `    time  ${names} ${"".padEnd(22)} ${"token".padEnd(16)}   waited`))
          }),
          asks: (worker) => Effect.asVoid(set(worker, "waiting")),
          enters: Effect.fnUntraced(function*(worker, what) {
            const waited = yield* set(worker, "inside")
            const token = yield* tokenOf(worker)
            yield* token === undefined
              ? row(`${worker} ${what}`)
              : row(`${worker} ${what}`, String(token), `${waited} ms`)
          }),
          does: (worker, what) => row(`${worker} ${what}`),
          leaves: (worker, what) => Effect.andThen(set(worker, "idle"), row(`${worker} ${what}`)),
          note: (text) => row(text)
        })
      })
    )
  }

  /** What the library logs, kept apart from the timeline. */
  static readonly logger = Logger.layer([
    Logger.make(({ logLevel, message }) => {
      process.stdout.write(`${paint("dim", `          log: ${logLevel} ${String(message)}`)}\n`)
    })
  ])
}
