import { it } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import { build } from "./support/client.ts"
import * as quorum from "./support/quorum.ts"
import * as scripts from "../src/internal/quorumScripts.ts"
const names = new Map(Object.values(scripts).flatMap((s: any) => [[s.sha, s.name], [s.source, s.name + "(src)"]]))
it.live("x", () => Effect.scoped(Effect.gen(function*() {
  const { connect, places } = yield* quorum.start(3)
  const [a, b] = [yield* connect(), yield* connect()]
  const ticket = yield* Effect.scoped(Effect.flatMap(a.lock.acquire("k", { ttl: 30000 }), (lease) => lease.handOff))
  const rec = yield* places[1]!.server.monitor
  yield* places[0]!.server.pause
  yield* places[1]!.server.pause
  console.log((yield* Effect.flip(Effect.scoped(b.lock.adopt(ticket)))).message)
  yield* places[1]!.server.resume
  const r = yield* Effect.exit(b.lock.adopt(ticket).pipe(
    Effect.retry({ while: ({ _tag }) => _tag === "LockStoreError", schedule: Schedule.spaced(50), times: 100 })
  ))
  console.log(String(r))
  for (const e of yield* rec.all) if (e.source !== "lua") console.log(e.time % 100000, e.source.slice(-5), e.command[0], names.get(e.command[1]!) ?? e.command[1], e.command.slice(3).join(" ").slice(0, 200))
  yield* places[0]!.server.resume
})), 60000)
