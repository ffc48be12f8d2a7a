/**
 * Histories of lock operations, recorded by any number of processes on one host, and the check that decides whether a
 * correct lock could have produced them.
 *
 * Each process records what it knows and when it knew it, as plain JSON, one event per line. Times are those of
 * `process.hrtime.bigint()`, which all processes of a host share. The check only concludes what is certain from them: a
 * grant happened somewhere between `invoke` and `acquired`, so only operations that did not run at the same time, and
 * holds as the holder itself saw them, are compared.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Fs from "node:fs"

const common = {
  client: Schema.String,
  op: Schema.String,
  key: Schema.String,
  time: Schema.BigIntFromString
}

const deadline = Schema.optionalKey(Schema.BigIntFromString)

/**
 * Something that happened to one operation, an attempt to hold a key.
 *
 * **Details**
 *
 * - `invoke`: about to ask, for `permits` (default 1).
 * - `enqueued`: the store has confirmed the place in the queue. Optional; what the FIFO check is based on.
 * - `acquired`: the grant, with its fencing token, is known.
 * - `release`: the guarded work has ended and the release is about to begin.
 * - `released`: the release is done.
 * - `lost`: the holder knows that the lease is gone.
 * - `failed`: the key was not granted.
 *
 * `deadline` of `release` and `lost` is the last local deadline of the lease. It says that the hold ended then, even if
 * the process was too slow (paused, say) to notice and record that in time.
 *
 * @category models
 * @since 0.1.0
 */
export const Event = Schema.Union([
  Schema.Struct({ kind: Schema.Literal("invoke"), ...common, permits: Schema.optionalKey(Schema.Int) }),
  Schema.Struct({ kind: Schema.Literal("enqueued"), ...common }),
  Schema.Struct({ kind: Schema.Literal("acquired"), ...common, token: Schema.Int }),
  Schema.Struct({ kind: Schema.Literal("release"), ...common, deadline }),
  Schema.Struct({ kind: Schema.Literal("released"), ...common }),
  Schema.Struct({ kind: Schema.Literal("lost"), ...common, deadline }),
  Schema.Struct({ kind: Schema.Literal("failed"), ...common })
])

/**
 * @category models
 * @since 0.1.0
 */
export type Event = typeof Event.Type

/**
 * Records the operations of one client.
 *
 * @category models
 * @since 0.1.0
 */
export interface Recorder {
  readonly client: string
  /**
   * Records that a key is about to be asked for.
   */
  readonly invoke: (key: string, options?: { readonly permits?: number | undefined }) => Effect.Effect<Operation>
  /**
   * Everything this recorder has recorded.
   */
  readonly events: Effect.Effect<ReadonlyArray<Event>>
}

/**
 * Records how an operation went on. Each effect takes the time when it runs.
 *
 * @category models
 * @since 0.1.0
 */
export interface Operation {
  readonly id: string
  readonly enqueued: Effect.Effect<void>
  readonly acquired: (token: number) => Effect.Effect<void>
  readonly release: (deadline?: bigint) => Effect.Effect<void>
  readonly released: Effect.Effect<void>
  readonly lost: (deadline?: bigint) => Effect.Effect<void>
  readonly failed: Effect.Effect<void>
}

/**
 * A recorder that keeps events in memory and, with `file`, appends each at once as a line to that file.
 *
 * **Details**
 *
 * A line is handed to the operating system before the recording effect ends, in one write: nothing is lost when the
 * process is killed, and processes can share a file.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(options: {
  readonly client: string
  readonly file?: string | undefined
}): Effect.fn.Return<Recorder, never, Scope.Scope> {
  const { client, file } = options
  const events: Array<Event> = []
  const descriptor = file === undefined ? undefined : yield* Effect.acquireRelease(
    Effect.sync(() => Fs.openSync(file, "a")),
    (descriptor) => Effect.sync(() => Fs.closeSync(descriptor))
  )

  const record = (make: (time: bigint) => Event) =>
    Effect.sync(() => {
      const event = make(process.hrtime.bigint())
      events.push(event)
      if (descriptor !== undefined) Fs.writeSync(descriptor, encode(event) + "\n")
    })

  return {
    client,
    invoke: Effect.fnUntraced(function*(key, { permits } = {}) {
      const id = `${client}#${process.pid}.${++operations}`
      const at = (time: bigint) => ({ client, op: id, key, time })
      const ended = (kind: "release" | "lost") => (deadline?: bigint) =>
        record((time) => ({ kind, ...at(time), ...(deadline !== undefined && { deadline }) }))
      yield* record((time) => ({ kind: "invoke", ...at(time), ...(permits !== undefined && { permits }) }))
      return {
        id,
        enqueued: record((time) => ({ kind: "enqueued", ...at(time) })),
        acquired: (token) => record((time) => ({ kind: "acquired", ...at(time), token })),
        release: ended("release"),
        released: record((time) => ({ kind: "released", ...at(time) })),
        lost: ended("lost"),
        failed: record((time) => ({ kind: "failed", ...at(time) }))
      }
    }),
    events: Effect.sync(() => [...events])
  }
})

let operations = 0

const encode = Schema.encodeSync(Schema.fromJsonString(Event))

const decode = Schema.decodeUnknownEffect(Schema.fromJsonString(Event))

/**
 * Reads the lines a recorder appended to its file. A last line without its end is not yet an event.
 *
 * @category constructors
 * @since 0.1.0
 */
export const parse = (text: string): Effect.Effect<ReadonlyArray<Event>, Schema.SchemaError> =>
  Effect.forEach(text.split("\n").slice(0, -1), (line) => decode(line))

/**
 * A way in which a history cannot be that of a correct lock. Operations are named by their ids.
 *
 * **Details**
 *
 * - `Malformed`: the recording itself makes no sense, so nothing can be concluded from this operation.
 * - `DuplicateToken`: two grants of a key have the same token.
 * - `TokenOrder`: `later` was asked for, or held, after `earlier` was acquired, and yet has the smaller token.
 * - `Overlap`: when `op` acquired the key, it and `holders` held more permits than the limit, together.
 * - `NotFifo`: `earlier` was in the queue before `later` was asked for, and yet has the greater token.
 *
 * @category models
 * @since 0.1.0
 */
export type Violation =
  | { readonly _tag: "Malformed"; readonly op: string; readonly problem: string }
  | {
    readonly _tag: "DuplicateToken"
    readonly key: string
    readonly token: number
    readonly ops: ReadonlyArray<string>
  }
  | { readonly _tag: "TokenOrder"; readonly key: string; readonly earlier: string; readonly later: string }
  | {
    readonly _tag: "Overlap"
    readonly key: string
    readonly time: bigint
    readonly op: string
    readonly holders: ReadonlyArray<string>
    readonly permits: number
  }
  | { readonly _tag: "NotFifo"; readonly key: string; readonly earlier: string; readonly later: string }

/**
 * Finds what is wrong with a history, in O(n log n). Empty means: nothing.
 *
 * **Details**
 *
 * `limit` (default 1) is how many permits of a key may be held at a time. `fifo` (default true) checks the order of
 * operations that have an `enqueued` event. Events may come in any order, so files of several processes are simply
 * concatenated.
 *
 * **Gotchas**
 *
 * An operation that has neither `release` nor `lost` (its process was killed) counts as a hold of no length: when it
 * ended is unknown. Its token is checked all the same.
 *
 * @category checking
 * @since 0.1.0
 */
export const check = (
  events: Iterable<Event>,
  options: { readonly limit?: number | undefined; readonly fifo?: boolean | undefined } = {}
): ReadonlyArray<Violation> => {
  const { fifo = true, limit = 1 } = options
  const { grants, violations } = collect(events)
  for (const [key, ofKey] of grants) {
    for (const ops of groupBy(ofKey, ({ token }) => token).values()) {
      if (ops.length > 1) {
        violations.push({ _tag: "DuplicateToken", key, token: ops[0]!.token, ops: ops.map(({ op }) => op) })
      }
    }
    const held = limit === 1 ? ofKey.filter((grant) => grant.end > grant.acquired) : []
    const inverted = new Map([
      ...precedence(held, ({ acquired }) => acquired, ({ acquired }) => acquired),
      ...precedence(ofKey, ({ acquired }) => acquired, ({ invoke }) => invoke)
    ])
    for (const [later, earlier] of inverted) {
      violations.push({ _tag: "TokenOrder", key, earlier: earlier.op, later: later.op })
    }
    if (fifo) {
      for (const [later, earlier] of precedence(ofKey, ({ enqueued }) => enqueued, ({ invoke }) => invoke)) {
        violations.push({ _tag: "NotFifo", key, earlier: earlier.op, later: later.op })
      }
    }
    violations.push(...overlaps(key, ofKey, limit))
  }
  return violations
}

/**
 * Who was served how often, and how long somebody had to wait.
 *
 * @category checking
 * @since 0.1.0
 */
export const stats = (
  events: Iterable<Event>
): { readonly grants: ReadonlyMap<string, number>; readonly longestWait: Duration.Duration } => {
  const grants = new Map<string, number>()
  let longest = 0n
  for (const grant of Array.from(collect(events).grants.values()).flat()) {
    grants.set(grant.client, (grants.get(grant.client) ?? 0) + 1)
    if (grant.acquired - grant.invoke > longest) longest = grant.acquired - grant.invoke
  }
  return { grants, longestWait: Duration.nanos(longest) }
}

interface Grant {
  readonly op: string
  readonly client: string
  readonly token: number
  readonly permits: number
  readonly invoke: bigint
  readonly enqueued: bigint | undefined
  readonly acquired: bigint
  readonly end: bigint
}

const collect = (events: Iterable<Event>): {
  readonly grants: ReadonlyMap<string, ReadonlyArray<Grant>>
  readonly violations: Array<Violation>
} => {
  const violations: Array<Violation> = []
  const grants: Array<[key: string, grant: Grant]> = []
  for (const [op, ofOp] of groupBy(events, (event) => event.op)) {
    const kinds: { [K in Event["kind"]]?: Extract<Event, { readonly kind: K }> } = {}
    for (const event of ofOp) Object.assign(kinds, { [event.kind]: event })
    const { acquired, enqueued, failed, invoke, lost, release, released } = kinds

    const problem = Object.keys(kinds).length < ofOp.length
      ? "the same kind of event twice"
      : invoke === undefined
      ? "no invoke"
      : ofOp.some(({ client, key, time }) => client !== invoke.client || key !== invoke.key || time < invoke.time)
      ? "an event of another client or key, or from before invoke"
      : acquired === undefined
      ? (release ?? lost ?? released) && "ended without acquired"
      : failed !== undefined
      ? "acquired and failed"
      : [release, lost, released].some((end) => end !== undefined && end.time < acquired.time)
      ? "ended before acquired"
      : undefined

    if (problem !== undefined) {
      violations.push({ _tag: "Malformed", op, problem })
    } else if (invoke !== undefined && acquired !== undefined) {
      const ends = [release, lost].flatMap((end) => end === undefined ? [] : [end.time, end.deadline ?? end.time])
      grants.push([invoke.key, {
        op,
        client: invoke.client,
        token: acquired.token,
        permits: invoke.permits ?? 1,
        invoke: invoke.time,
        enqueued: enqueued?.time,
        acquired: acquired.time,
        end: ends.reduce((a, b) => a < b ? a : b, ends[0] ?? acquired.time)
      }])
    }
  }
  const byKey = groupBy(grants, ([key]) => key)
  return {
    grants: new Map(Array.from(byKey, ([key, entries]) => [key, entries.map(([, grant]) => grant)])),
    violations
  }
}

/**
 * Pairs [later, earlier] where `earlier` was done before `later` began, but has the greater token.
 */
const precedence = (
  grants: ReadonlyArray<Grant>,
  done: (grant: Grant) => bigint | undefined,
  begun: (grant: Grant) => bigint
): ReadonlyArray<readonly [later: Grant, earlier: Grant]> => {
  const earlier = grants.flatMap((grant) => {
    const time = done(grant)
    return time === undefined ? [] : [{ grant, time }]
  }).toSorted((a, b) => compare(a.time, b.time))
  const pairs: Array<readonly [Grant, Grant]> = []
  let next = 0
  let highest: Grant | undefined
  for (const later of grants.toSorted((a, b) => compare(begun(a), begun(b)))) {
    for (; next < earlier.length && earlier[next]!.time < begun(later); next++) {
      const { grant } = earlier[next]!
      if (highest === undefined || grant.token > highest.token) highest = grant
    }
    if (highest !== undefined && highest.token > later.token) pairs.push([later, highest])
  }
  return pairs
}

const overlaps = (key: string, grants: ReadonlyArray<Grant>, limit: number): ReadonlyArray<Violation> => {
  const found: Array<Violation> = []
  const holders = new Set<string>()
  let permits = 0
  const edges = grants.flatMap((grant) =>
    grant.end > grant.acquired
      ? [{ time: grant.acquired, begins: true, grant }, { time: grant.end, begins: false, grant }]
      : []
  )
  // At the same instant, ends come first.
  for (const { begins, grant, time } of edges.toSorted((a, b) => compare(a.time, b.time) || +a.begins - +b.begins)) {
    if (!begins) {
      holders.delete(grant.op)
      permits -= grant.permits
      continue
    }
    permits += grant.permits
    if (permits > limit) {
      found.push({ _tag: "Overlap", key, time, op: grant.op, holders: [...holders].slice(0, 8), permits })
    }
    holders.add(grant.op)
  }
  return found
}

const compare = (a: bigint, b: bigint): number => a < b ? -1 : a > b ? 1 : 0

const groupBy = <A, K>(items: Iterable<A>, keyOf: (item: A) => K): Map<K, Array<A>> => {
  const groups = new Map<K, Array<A>>()
  for (const item of items) {
    const group = groups.get(keyOf(item))
    if (group === undefined) groups.set(keyOf(item), [item])
    else group.push(item)
  }
  return groups
}
