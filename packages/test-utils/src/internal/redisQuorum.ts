import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as FaultProxy from "../FaultProxy.ts"
import type { Options, Quorum } from "../RedisServer.ts"
import { make as makeServer } from "./redisServer.ts"
import type { RedisServerError } from "./redisServerError.ts"

/** @internal */
export const make = (n: number, options?: Options): Effect.Effect<Quorum, RedisServerError, Scope.Scope> =>
  Effect.map(
    Effect.all(
      Array.from({ length: n }, () =>
        Effect.gen(function*() {
          const server = yield* makeServer(options)
          return { server, proxy: yield* FaultProxy.make(server) }
        })),
      { concurrency: "unbounded" }
    ),
    (voters) => ({ voters })
  )
