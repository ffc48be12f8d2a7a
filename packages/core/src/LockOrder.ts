/**
 * Finds locks that are nested in two orders before they ever wait for each other.
 *
 * **When to use**
 *
 * One place takes an account's lock and then an invoice's, another the invoice's and then the account's: one day both wait
 * for ever, or until `waitTimeout`. Provide this layer to see it the first time that both orders are used in one process,
 * whether or not anything waits: with `"fail"` in tests, with `"warn"` in production.
 *
 * **Details**
 *
 * What is remembered are classes of keys, `account` before `invoice`, with the first place of each pair, and circles over
 * more than two of them are found, too. A class nested in itself (`account:2` inside `account:1`) is always reported, as
 * nothing orders its keys: take them together with `Lock.withLocks`, or tell parents from children with `classOf`. The keys
 * of one `withLocks` or `acquireAll` have their order, and count for those that are nested elsewhere. Asking again for a key
 * that is held, and asking without waiting, is no nesting.
 *
 * **Gotchas**
 *
 * Only this process is watched, and only what fibers do that have this layer in their context: provide it to the program, not
 * to `Lock.layer`. What `Lock.acquire` took is known to the same fiber only, what `withLock` took also to those it forks.
 * 10,000 pairs of classes are remembered; then new pairs are not looked at any more, and a warning says so. Keys that
 * have no colon are classes of their own: pass a `classOf` if there are many.
 *
 * **Example** (The wrong way round)
 *
 * ```ts import.meta.vitest
 * import { Effect, Layer } from "effect"
 * import { Lock, LockOrder, LockStore } from "@effect-lock/core"
 *
 * const program = Effect.gen(function*() {
 *   yield* Effect.void.pipe(Lock.withLock("invoice:1"), Lock.withLock("account:1"))
 *   yield* Effect.void.pipe(Lock.withLock("account:2"), Lock.withLock("invoice:2"))
 * }).pipe(Effect.flip, Effect.map(({ _tag }): string => _tag))
 *
 * const Live = Lock.layer().pipe(
 *   Layer.provide(LockStore.layerMemory),
 *   Layer.merge(LockOrder.layer({ onInversion: "fail" }))
 * )
 * await Effect.runPromise(Effect.provide(program, Live)) // => "LockDeadlock"
 * ```
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import { CurrentOrder, type Order } from "./internal/order.ts"
import { LockDeadlock } from "./LockError.ts"

/**
 * What to do about an inversion, and what the classes are.
 *
 * @category models
 * @since 0.1.0
 */
export interface Options {
  /** `"warn"` logs the first inversion of each pair of classes; `"fail"` fails every one with `LockDeadlock`, reason `Order`. */
  readonly onInversion: "warn" | "fail"
  /** The class of a key. Default what stands before its first colon. */
  readonly classOf?: ((key: string) => string) | undefined
}

/**
 * Watches the order in which locks are nested. Every build of the layer starts with an empty memory; without it, nothing is
 * watched and nothing is spent.
 *
 * **Example** (Classes by kind and level)
 *
 * ```ts import.meta.vitest
 * import { LockOrder } from "@effect-lock/core"
 *
 * // folder/3:some-id is locked inside folder/2:its-parent
 * export const Watched = LockOrder.layer({ onInversion: "warn", classOf: (key) => key.split(":", 1)[0]! })
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (options: Options): Layer.Layer<never> => Layer.sync(CurrentOrder)(() => makeOrder(options))

/** Somebody asked for `key` while `before` was held. */
interface Nesting {
  readonly key: string
  readonly before: string
  readonly place: string
  /** Not of keys of one call, which have an order. */
  readonly isNested: boolean
  /** What it contradicts: the way back. */
  readonly against: ReadonlyArray<Nesting> | undefined
}

/** A key behind its class. */
type Classified = readonly [string, string]

const maxPairs = 10_000

const makeOrder = ({ classOf = (key) => key.split(":", 1)[0]!, onInversion }: Options): Order => {
  /** By the class that was held and the class that was asked for. */
  const seen = new Map<string, Map<string, Nesting>>()
  let pairs = 0

  /**
   * The shortest way between two classes, empty from a class to itself. One along calls of several keys only is no
   * contradiction to another such.
   */
  const findWay = (from: string, to: string, isNested: boolean): ReadonlyArray<Nesting> | undefined => {
    const steps: Array<{ at: string; way: ReadonlyArray<Nesting>; isNested: boolean }> = [{
      at: from,
      way: [],
      isNested
    }]
    const visited = new Set<string>()
    for (const { at, isNested, way } of steps) {
      if (at === to && isNested) return way
      for (const [next, nesting] of seen.get(at) ?? []) {
        const step = { at: next, way: [...way, nesting], isNested: isNested || nesting.isNested }
        const id = `${step.isNested} ${next}`
        if (nesting.against !== undefined || visited.has(id)) continue
        visited.add(id)
        steps.push(step)
      }
    }
    return undefined
  }

  const look = (
    [to, key]: Classified,
    [from, before]: Classified,
    isNested: boolean,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Effect.Effect<void, LockDeadlock> | undefined => {
    const known = seen.get(from)?.get(to)
    if (known !== undefined && (known.isNested || !isNested)) {
      return known.against === undefined || onInversion === "warn"
        ? undefined
        : Effect.fail(report({ ...known, key, before, place: placeOf(fiber) }))
    }
    if (from === to && !isNested || known === undefined && pairs > maxPairs) return undefined
    if (known === undefined && pairs++ === maxPairs) {
      return annotated(key, Effect.logWarning(`LockOrder remembers ${maxPairs} pairs of classes, and looks at no more`))
    }
    const against = findWay(to, from, isNested)
    const nesting: Nesting = { key, before, place: placeOf(fiber), isNested, against }
    seen.set(from, (seen.get(from) ?? new Map()).set(to, nesting))
    if (against === undefined) return undefined
    const error = report(nesting)
    return onInversion === "fail" ? Effect.fail(error) : annotated(key, Effect.logWarning(error.message))
  }

  return (keys, held) =>
    Effect.withFiber((fiber) => {
      const holds = new Set(held)
      if (holds.size === 0 && keys.length === 1) return Effect.void
      const outer = new Map(Array.from(holds, (key) => [classOf(key), key]))
      const earlier = new Map<string, string>()
      const reports: Array<Effect.Effect<void, LockDeadlock> | undefined> = []
      for (const key of keys) {
        if (holds.has(key)) continue
        const asked: Classified = [classOf(key), key]
        for (const before of outer) reports.push(look(asked, before, true, fiber))
        for (const before of earlier) reports.push(look(asked, before, false, fiber))
        earlier.set(...asked)
      }
      return Effect.forEach(reports, (report) => report ?? Effect.void, { discard: true })
    })
}

const annotated = (key: string, effect: Effect.Effect<void>): Effect.Effect<void> =>
  Effect.annotateLogs(effect, { module: "effect-lock", key })

const report = ({ against, before, key, place }: Nesting): LockDeadlock => {
  const others = against!.map((it) => `"${it.key}" was asked for while "${it.before}" was held, ${it.place}`)
  const why = others.length === 0
    ? "keys of one class have no order, take them together with Lock.withLocks"
    : others.join("; and ")
  return new LockDeadlock({ key, token: 0, reason: "Order", detail: `while "${before}" is held, ${place}; but ${why}` })
}

/** What the program calls the place: its spans and traced functions, innermost first, with their lines. */
const placeOf = (fiber: Fiber.Fiber<unknown, unknown>): string => {
  const names: Array<string> = []
  for (let frame = fiber.getRef(References.CurrentStackFrame); frame !== undefined; frame = frame.parent) {
    if (names.push(`${frame.name} ${frame.stack()?.split("\n", 1)[0] ?? ""}`.trim()) === 4) break
  }
  return names.length === 0 ? "in a place without Effect.fn or span" : `in ${names.join(" < ")}`
}
