/**
 * Commands for Redis data that refuse a stale fencing token: what `Fencing` of `@effect-lock/core` is for a database. The data
 * may be on another server than the locks.
 *
 * @since 0.1.0
 */
import * as Fencing from "@effect-lock/core/Fencing"
import type * as LockError from "@effect-lock/core/LockError"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Cluster, Command, type Redis } from "ioredis"
import { createHash } from "node:crypto"
import { invalid, keyPrefix, millis, resolve } from "./internal/options.ts"
import * as RedisClient from "./RedisClient.ts"

/**
 * A command and its arguments, as they are sent: `["SET", "{account:7}:balance", 110]`.
 *
 * @category models
 * @since 0.1.0
 */
export type FencedCommand = readonly [name: string, ...args: ReadonlyArray<string | number>]

/**
 * @category options
 * @since 0.1.0
 */
export interface Options {
  /**
   * How long a resource remembers its token after the last time one was accepted; 30 days by default. When that is over any
   * token is accepted, so let it be longer than any process could be late.
   */
  readonly retention?: Duration.Input | undefined
  /** How long the server may take to answer; 2 seconds by default. */
  readonly commandTimeout?: Duration.Input | undefined
  /** What the names of the keys that hold tokens begin with; `"effect-lock"` by default. */
  readonly keyPrefix?: string | undefined
}

/**
 * Resources on one Redis server or Cluster that refuse stale tokens.
 *
 * @category models
 * @since 0.1.0
 */
export interface FencedRedis {
  /** Shows a token to the resource: from now on smaller ones are refused. */
  readonly register: (resource: string, token: Fencing.Token) => Effect.Effect<void, FencedError>
  /**
   * Runs commands, reading or writing, in one go unless the token is stale, and returns their replies as a script gets them
   * (that of `HGETALL`, say, is a flat array).
   */
  readonly run: (
    resource: string,
    token: Fencing.Token,
    commands: ReadonlyArray<FencedCommand>
  ) => Effect.Effect<ReadonlyArray<unknown>, FencedError>
}

/**
 * - `StaleToken`: nothing was run.
 * - `LockInvalid`: nothing was sent. The token, the resource's name or a command is unusable; on a Cluster also when the keys
 *   are not in the resource's slot.
 * - `LockStoreError`: the server refused a command, or did not answer. Commands before the refused one stay done, as in
 *   `MULTI`; after `Timeout` and `Unavailable` all of them may have run.
 *
 * @category errors
 * @since 0.1.0
 */
export type FencedError = Fencing.StaleToken | LockError.LockInvalid | LockError.LockStoreError

/**
 * Uses an ioredis client of the application, which stays open when the scope closes. Token and data are one script's work, so
 * nobody comes in between.
 *
 * **Details**
 *
 * The token is kept under `effect-lock:fence:{<resource>}:<resource>`. On a Cluster all keys of a call must be in the same
 * slot: the key that is named like the resource, or any with `{<resource>}` in its name. If the resource's name has braces
 * itself, what is in them counts.
 *
 * **Gotchas**
 *
 * - Commands may run twice when a reply is lost and the client sends again, as ioredis does by default: prefer `SET` to `INCR`.
 * - A server that may evict keys may evict tokens, and a failover may lose the last ones together with the last data.
 * - Keys of commands that ioredis does not know (those of modules) get no prefix and are not checked.
 *
 * **Example** (Register and read, then write)
 *
 * ```ts import.meta.vitest
 * import { Lock } from "@effect-lock/core"
 * import { FencedRedis } from "@effect-lock/redis"
 * import { Effect } from "effect"
 * import type { Redis } from "ioredis"
 *
 * export const deposit = Effect.fn("deposit")(function*(redis: Redis) {
 *   const fenced = yield* FencedRedis.make(redis)
 *   const lease = yield* Lock.acquire("account:7")
 *   const [balance] = yield* fenced.run("account:7", lease, [["GET", "{account:7}:balance"]])
 *   yield* fenced.run("account:7", lease, [["SET", "{account:7}:balance", Number(balance) + 10]])
 * }, Effect.scoped)
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  redis: Redis | Cluster,
  options?: Options
): Effect.fn.Return<FencedRedis, LockError.LockInvalid, Scope.Scope> {
  const settings = yield* resolve(() => ({
    retention: millis("retention", options?.retention ?? "30 days", maxRetention),
    commandTimeout: millis("commandTimeout", options?.commandTimeout ?? "2 seconds"),
    prefix: keyPrefix(options?.keyPrefix)
  }))
  const client = yield* RedisClient.fromConnection(redis, settings.commandTimeout)
  // ioredis puts it before the keys of a script, and not before those of the commands in there.
  const ownPrefix = redis.options.keyPrefix ?? ""

  const fenceKey = (resource: string): string => {
    const tag = hashed(resource)
    if (tag.includes("}")) throw invalid("resource", resource, "have no closing brace in its name but that of {a tag}")
    return `${settings.prefix}:fence:{${tag}}:${resource}`
  }

  const run: FencedRedis["run"] = (resource, token, commands) =>
    Effect.gen(function*() {
      const value = yield* Fencing.resolve(resource, token)
      const { args, keys } = yield* resolve(() => {
        const fence = fenceKey(resource)
        const keys = new Set([fence])
        const args: Array<string | number> = [value, settings.retention]
        for (const [name, ...rest] of commands) {
          for (const key of new Command(name, rest).getKeys() as ReadonlyArray<string | undefined>) {
            if (key === undefined) throw invalid("command", name, "give it its key")
            if (redis.isCluster && hashed(ownPrefix + key) !== hashed(ownPrefix + fence)) {
              throw invalid(
                "key",
                key,
                `on a Cluster it must contain {${hashed(resource)}}, to be in the resource's slot`
              )
            }
            keys.add(key)
          }
          if (rest.length > maxArguments) throw invalid("command", name, `give it at most ${maxArguments} arguments`)
          const { args: prefixed } = new Command(name, rest, { keyPrefix: ownPrefix })
          args.push(prefixed.length + 1, name, ...prefixed as Array<string>)
        }
        return { args, keys: [...keys] }
      })
      const reply = yield* client.run(script, keys, args)
      const [replies, highest] = reply as [ReadonlyArray<unknown>] | [null, string]
      return replies ?? (yield* new Fencing.StaleToken({ resource, token: value, highest: Number(highest) }))
    })

  return { run, register: (resource, token) => Effect.asVoid(run(resource, token, [])) }
})

/** The part of a key that decides its slot. */
const hashed = (key: string): string => /^[^{]*\{([^}]+)\}/.exec(key)?.[1] ?? key

// Added to the time of day it must not overflow.
const maxRetention = 2 ** 43

// Lua cannot pass on more than some 8000.
const maxArguments = 7000

// A token that is no number breaks the script off at the comparison, before anything is written.
const source = `
local highest = redis.call('GET', KEYS[1])
if highest and tonumber(highest) > tonumber(ARGV[1]) then return { false, highest } end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local replies = {}
local i = 3
while i <= #ARGV do
  local last = i + tonumber(ARGV[i])
  replies[#replies + 1] = redis.call(unpack(ARGV, i + 1, last))
  i = last + 1
end
return { replies }
`

const script = { name: "fenced", source, sha: createHash("sha1").update(source).digest("hex") }
