import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import * as Net from "node:net"
import type { MonitorEntry, Recording } from "../RedisServer.ts"
import { RedisServerError } from "./redisServerError.ts"

const markerPrefix = "effect-lock-marker:"

// A socket of our own: ioredis splits a monitored line wrongly when an argument contains quotes.
/** @internal */
export const monitor = Effect.fnUntraced(function*(
  port: number,
  send: (marker: string) => Effect.Effect<unknown, RedisServerError>
): Effect.fn.Return<Recording, RedisServerError, Scope.Scope> {
  const active = Deferred.makeUnsafe<void, RedisServerError>()
  const ended = Deferred.makeUnsafe<never, RedisServerError>()
  const markers = new Map<string, Deferred.Deferred<void>>()
  let entries: Array<MonitorEntry> = []

  const onLine = (line: string) => {
    const entry = parseMonitorLine(line)
    if (entry === undefined) {
      Deferred.doneUnsafe(
        active,
        line === "+OK" ? Exit.void : Exit.fail(new RedisServerError({ reason: "CommandFailed", message: line }))
      )
    } else if (entry.command[1]?.startsWith(markerPrefix) === true) {
      const seen = markers.get(entry.command[1])
      if (seen !== undefined) Deferred.doneUnsafe(seen, Exit.void)
    } else {
      entries.push(entry)
    }
  }

  yield* Effect.acquireRelease(
    Effect.sync(() => {
      const socket = Net.connect(port, "127.0.0.1")
      const end = (cause?: unknown) => {
        Deferred.doneUnsafe(
          ended,
          Exit.fail(new RedisServerError({ reason: "NotRunning", message: "The monitored server is gone", cause }))
        )
      }
      let rest = ""
      socket.setEncoding("latin1")
      socket.on("data", (chunk: string) => {
        rest += chunk
        if (!chunk.includes("\n")) return
        const lines = rest.split("\r\n")
        rest = lines.pop() ?? ""
        lines.forEach(onLine)
      })
      socket.on("error", end)
      socket.on("close", () => end())
      socket.write("MONITOR\r\n")
      return socket
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )
  yield* Effect.raceFirst(Deferred.await(ended), Deferred.await(active))

  const flush = Effect.suspend(() => {
    const marker = markerPrefix + Crypto.randomUUID()
    const seen = Deferred.makeUnsafe<void>()
    markers.set(marker, seen)
    return Effect.raceFirst(Deferred.await(ended), Effect.andThen(send(marker), Deferred.await(seen))).pipe(
      Effect.ensuring(Effect.sync(() => markers.delete(marker)))
    )
  })
  return {
    all: Effect.map(flush, () => [...entries]),
    take: Effect.map(flush, () => {
      const taken = entries
      entries = []
      return taken
    })
  }
})

// +1700000000.123456 [0 127.0.0.1:50000] "set" "key" "\xe2\x82\xac"
const parseMonitorLine = (line: string): MonitorEntry | undefined => {
  const match = /^\+([\d.]+) \[\d+ (\S+)\] (.*)$/.exec(line)
  return match === null ? undefined : {
    time: Number(match[1]) * 1000,
    source: match[2]!,
    command: Array.from(match[3]!.matchAll(/"((?:[^"\\]+|\\.)*)"/g), ([, quoted]) => unescape(quoted!))
  }
}

const escapes: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t", a: "\x07", b: "\b" }

const unescape = (quoted: string): string =>
  Buffer.from(
    quoted.replace(
      /\\(?:x([0-9a-f]{2})|(.))/g,
      (_, hex: string | undefined, char: string) =>
        hex === undefined ? escapes[char] ?? char : String.fromCharCode(Number.parseInt(hex, 16))
    ),
    "latin1"
  ).toString("utf8")
