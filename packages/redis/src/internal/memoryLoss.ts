import * as LockError from "@effect-lock/core/LockError"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { createHash } from "node:crypto"
import type * as RedisClient from "../RedisClient.ts"
import { monotonicUnsafe } from "./instant.ts"
import type { Script } from "./scripts.ts"

/**
 * A server that restarted, and a replica that was promoted, may have forgotten leases whose holders still work. Which process
 * served last is therefore kept in a mark that is replicated like everything else: the first script that runs on another
 * process finds that out, and from then on nothing new is granted until every lease that may be forgotten has run out. What
 * is known of is renewed and released meanwhile, and who waits is queued.
 *
 * A client could not remember the process instead: it would miss a master that is replaced and comes back while the client
 * is looking elsewhere.
 *
 * The mark is one key: `<run_id> <since> <longest> <before> <turn>`
 *
 * - since when that process serves, if it may have forgotten something; else 0
 * - the longest ttl granted in this generation and in the one before it, and when the next one begins. A generation lasts at
 *   least as long as the longest ttl of the one before it, so that a single long lease is not waited for, for ever.
 *
 * On a Cluster there is one for each master, in the lowest of its slots: one for each slot would be missing, together with
 * the lease itself, whenever the first lease of a slot is lost, and would take the move of a slot for a failover. No script
 * can name keys of two slots, so there the mark is not among KEYS.
 *
 * @internal
 */
export interface MemoryLoss {
  /** Runs every script that can grant in its guarded form. */
  readonly client: RedisClient.RedisClient
  /** A script that is sent otherwise, not to a Cluster. */
  readonly guarded: (script: Script, keys: ReadonlyArray<string>, args: Arguments) => GuardedScript
  /** Leaves a mark on every master, before anything is granted there. */
  readonly start: Effect.Effect<void, LockError.LockStoreError>
}

type Arguments = ReadonlyArray<string | number>

type GuardedScript = readonly [script: Script, keys: ReadonlyArray<string>, args: Arguments]

interface Place {
  readonly master: string
  readonly mark: string
}

/** @internal */
export interface Settings {
  readonly keyPrefix: string
  readonly commandTimeout: number
  readonly assumeFresh: boolean
  readonly slack: number
  readonly longestTtl: number
  /** The option that switches it off, for errors. */
  readonly option: string
}

/**
 * Comes before the body of a script with so many keys, whose last arguments are its own: what a missing mark means, slack,
 * the longest ttl to expect, and the mark where it is not the next key. `withheld` is for how long nothing is granted; a ttl
 * greater than `recorded` is passed to `record`; and `process` is who serves.
 *
 * @internal
 */
export const guard = (keys: number) => `
local M = KEYS[${keys + 1}] or table.remove(ARGV)
local expected = tonumber(table.remove(ARGV))
local slack = tonumber(table.remove(ARGV))
local unmarked = table.remove(ARGV)
local info = redis.call('INFO', 'server')
local runId = string.match(info, '^(%w+)', select(2, string.find(info, 'run_id:', 1, true)) + 1)
local process = tonumber(string.sub(runId, 1, 12), 16)
local mark = redis.pcall('GET', M)
if type(mark) == 'table' then
  -- The client is mistaken about who serves that slot. Nothing has been written yet.
  if string.find(mark.err, 'non local key') then return 'elsewhere' end
  return mark
end
local marked, since, longest, before, turn = string.match(mark or '', '^(%w+) (%d+) (%d+) (%d+) (%d+)$')
since, longest, before, turn = tonumber(since or 0), tonumber(longest or 0), tonumber(before or 0), tonumber(turn or 0)

-- Without it nothing is granted any earlier, so it must not make a renewal fail when memory is short.
local function keepMark()
  redis.pcall('SET', M, string.format('%s %d %d %d %d', runId, since, longest, before, turn),
    'PX', string.format('%d', 2592000000 + longest))
end

if marked ~= runId then
  since = now
  if not marked and unmarked == 'new' then since = 0
  elseif not marked and unmarked == 'started' then
    since = now - tonumber(string.match(info, 'uptime_in_seconds:(%d+)')) * 1000
  end
  longest = math.max(longest, expected)
  turn = math.max(turn, now + math.max(longest, 60000))
  keepMark()
end
local withheld = since > 0 and math.max(0, since + math.max(longest, before) + slack - now) or 0
local recorded = (withheld > 0 or now < turn) and longest or -1

local function record(ttl)
  if withheld == 0 then
    since = 0
    if now >= turn then
      before, longest = longest, 0
      turn = now + math.max(before, 60000)
    end
  end
  longest = math.max(longest, ttl)
  -- What this process grants it has not forgotten: the delay ends when it was to end, and only the next one is longer.
  if withheld > 0 then since = now + withheld - slack - math.max(longest, before) end
  recorded = longest
  keepMark()
end
`

const checkSource = `
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
${guard(0)}
return withheld
`

const check: Script = {
  name: "lockDelay",
  source: checkSource,
  sha: createHash("sha1").update(checkSource).digest("hex")
}

/** @internal */
export const make = Effect.fnUntraced(function*(
  client: RedisClient.RedisClient,
  settings: Settings
): Effect.fn.Return<MemoryLoss> {
  const clock = yield* Clock.clockWith(Effect.succeed)
  const { cluster } = client
  const unused = settings.assumeFresh ? "new" : "started"
  /** Marks that have been seen: those that are missing now have been forgotten. */
  const known = new Set<string>()
  /** Masters with a mark: where it is missing in what is their lowest slot now, slots have moved. */
  const masters = new Set<string>()
  const see = ({ mark, master }: Place): void => {
    known.add(mark)
    masters.add(master)
  }

  const argumentsFor = ({ mark, master }: Place, unmarked: string): Arguments => [
    known.has(mark) ? "forgotten" : masters.has(master) ? unused : unmarked,
    settings.slack,
    settings.longestTtl
  ]

  const now = () => monotonicUnsafe(clock)
  /** The lowest slot of each master, as it was less than a second ago. */
  let lowestSlots = new Map<string, number>()
  let readAt = -Infinity
  const readSlots = (masterOf: (slot: number) => string | undefined): void => {
    if (now() < readAt + 1000) return
    readAt = now()
    lowestSlots = new Map()
    for (let slot = slotCount - 1; slot >= 0; slot--) {
      const master = masterOf(slot)
      if (master !== undefined) lowestSlots.set(master, slot)
    }
  }

  const only: Place = { master: "", mark: `${settings.keyPrefix}:mark` }
  const placeIn = (master: string, slot: number): Place => ({
    master,
    mark: `${settings.keyPrefix}:mark:{${tagOf(slot)}}`
  })
  /**
   * Where the mark may be of the server that serves a lock: a script that runs elsewhere says so. While a slot is on its way
   * to another master, that may be any.
   */
  const placeOf = (hash: string, tries: number): Place | undefined => {
    if (cluster === undefined) return only
    readSlots(cluster.masterOf)
    const likely = cluster.masterOf(slotOf(cluster.keyPrefix + hash))
    const all = Array.from(lowestSlots)
    const first = all.findIndex(([master]) => master === likely)
    const place = all[(Math.max(0, first) + tries) % all.length]
    return place === undefined ? undefined : placeIn(...place)
  }

  const elsewhere = (operation: string) =>
    new LockError.LockStoreError({
      store: "redis",
      operation,
      reason: "Unavailable",
      detail: "it is not known which node of the Cluster serves the key"
    })

  const run: RedisClient.RedisClient["run"] = (script, keys, args, onUnanswered) => {
    const { guarded } = script
    if (guarded === undefined) return client.run(script, keys, args, onUnanswered)
    return Effect.suspend(() => {
      const until = now() + settings.commandTimeout
      let tries = 0
      const once: Effect.Effect<unknown, LockError.LockStoreError> = Effect.suspend(() => {
        const place = placeOf(keys[0]!, tries++)
        const call = place === undefined
          ? Effect.succeed("elsewhere")
          : client.run(
            guarded,
            cluster === undefined ? [...keys, place.mark] : keys,
            // A master that appears after the start has most likely been a replica until now.
            [
              ...args,
              ...argumentsFor(place, "forgotten"),
              // Not a key for ioredis, which would put its prefix before it.
              ...cluster === undefined ? [] : [cluster.keyPrefix + place.mark]
            ],
            onUnanswered
          )
        return Effect.flatMap(call, (reply) => {
          if (reply !== "elsewhere") {
            // Otherwise a mark that was never there would count as forgotten.
            if (guarded.isEarly !== true) see(place!)
            return Effect.succeed(reply)
          }
          if (now() > until) return Effect.fail(elsewhere(script.name))
          if (tries < lowestSlots.size) return once
          tries = 0
          cluster?.refresh()
          readAt = -Infinity
          return Effect.delay(once, 25 + Math.random() * 50)
        })
      })
      return once
    })
  }

  const startOn = (place: Place) =>
    client.run(check, [place.mark], argumentsFor(place, unused)).pipe(
      Effect.tap((reply) =>
        Effect.suspend(() => {
          if (reply !== "elsewhere") see(place)
          return Number(reply) > 0 ? warnWithheld(Number(reply)) : Effect.void
        })
      ),
      Effect.catch((error) =>
        // One node of a Cluster that does not answer is no reason for the others not to be used.
        error.reason !== "Refused" && cluster !== undefined ? Effect.void : Effect.fail(
          error.reason !== "Refused" ? error : new LockError.LockStoreError({
            store: "redis",
            operation: "startup",
            reason: "Refused",
            detail: `${settings.option} needs INFO and its own keys to be allowed in scripts: allow them, or set ` +
              `${settings.option} to false. The server says: ${error.detail}`,
            cause: error
          })
        )
      )
    )

  return {
    client: { ...client, run },
    guarded: (script, keys, args) => [
      script.guarded ?? script,
      [...keys, only.mark],
      [...args, ...argumentsFor(only, "forgotten")]
    ],
    start: Effect.suspend(() => {
      if (cluster === undefined) return startOn(only)
      readSlots(cluster.masterOf)
      return Effect.forEach(lowestSlots, ([master, slot]) => startOn(placeIn(master, slot)), {
        concurrency: "unbounded",
        discard: true
      })
    })
  }
})

/** @internal */
export const warnWithheld = (millis: number): Effect.Effect<void> =>
  Effect.logWarning(
    `Redis has restarted or was replaced, and may have forgotten leases: nothing is granted for ${millis} ms more`
  ).pipe(Effect.annotateLogs({ module: "effect-lock" }))

/** @internal */
export const withheld = (operation: string, millis: number): LockError.LockStoreError =>
  new LockError.LockStoreError({
    store: "redis",
    operation,
    reason: "Refused",
    limitName: "lockDelay",
    limit: millis,
    detail: `withheld for ${millis} ms more: the server has restarted or was replaced, and may have forgotten a lease`
  })

const slotCount = 16384
const encoder = new TextEncoder()

/** The slot of a key on a Cluster: CRC16 of what is between its first braces, if there is something. */
const slotOf = (key: string): number => {
  const open = key.indexOf("{")
  const close = key.indexOf("}", open + 1)
  const hashed = open >= 0 && close > open + 1 ? key.slice(open + 1, close) : key
  let crc = 0
  for (const byte of encoder.encode(hashed)) {
    crc ^= byte << 8
    for (let bit = 0; bit < 8; bit++) crc = (crc & 0x8000) === 0 ? crc << 1 : (crc << 1) ^ 0x1021
    crc &= 0xffff
  }
  return crc % slotCount
}

const tags = new Map<number, string>()

/** The least number whose text belongs to a slot. */
const tagOf = (slot: number): string => {
  let tag = tags.get(slot)
  if (tag === undefined) {
    let number = 0
    while (slotOf(String(number)) !== slot) number++
    tag = String(number)
    tags.set(slot, tag)
  }
  return tag
}
