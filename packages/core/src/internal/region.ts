import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { LockDeadlock, LockLost, LockTimeout } from "../LockError.ts"
import { failIf, type Holding, protect } from "./holding.ts"

/**
 * The part of a program that runs under `withLock`. Asking for the same key inside it, in whatever fiber, shares its lease:
 * those who do so take turns here instead of queueing in the store behind themselves.
 *
 * @internal
 */
export class Region {
  readonly holding: Holding
  /** The region that this one is a turn of, and ends with. */
  readonly turnOf: Region | undefined
  /** The region of the same key around this one. */
  #around: Region | undefined
  /** Fails for everything nested here once this region has ended. */
  readonly over: Deferred.Deferred<never, LockLost> = Deferred.makeUnsafe()
  /** Who nests, in order: the first has its turn. */
  readonly turns: Array<Turn> = []
  open = true

  constructor(holding: Holding, around: Region | undefined, isTurn: boolean) {
    this.holding = holding
    this.turnOf = isTurn ? around : undefined
    this.#around = around
  }

  get around(): Region | undefined {
    return this.#around = Region.open(this.#around)
  }

  /** The innermost open one of a region and those around it: what has ended is forgotten, with all it remembers. */
  static open(region: Region | undefined): Region | undefined {
    let it = region
    while (it?.open === false) it = it.#around
    return it
  }
}

/**
 * How many permits of a key those inside a region have. What was handed off is somebody else's, who may be inside.
 *
 * @internal
 */
export const permitsIn = (region: Region): number => {
  let permits = 0
  let counted: Holding | undefined
  for (let it: Region | undefined = region; it !== undefined; it = it.around) {
    if (!it.open || it.holding === counted || it.holding.phase === "handedOff") continue
    permits += it.holding.permits
    counted = it.holding
  }
  return permits
}

/** @internal */
export class Turn {
  readonly asker: Asker
  readonly scope: Scope.Scope
  /** A region that ends waits for nested bodies, but not for leases acquired into scopes that may be wider than it. */
  readonly isBody: boolean
  /** True: it is this one's turn. False: the region ended first. */
  readonly called: Deferred.Deferred<boolean> = Deferred.makeUnsafe()
  readonly done: Deferred.Deferred<void> = Deferred.makeUnsafe()
  isDone = false
  /** The region it is waited for in. */
  waitsIn: Region | undefined = undefined

  constructor(asker: Asker, scope: Scope.Scope, isBody: boolean) {
    this.asker = asker
    this.scope = scope
    this.isBody = isBody
  }
}

/**
 * Turns that are waited for, by the fibers that cannot go on before.
 *
 * @internal
 */
export type WaitingTurns = Map<number, Set<Turn>>

/**
 * Who asks: a fiber, and those that wait for it because it runs the body of their `withLock`.
 *
 * @internal
 */
export interface Asker {
  readonly fiberId: number
  readonly awaitedBy: ReadonlySet<number>
}

/**
 * What a fiber is inside of. `bodyOf` tells the body's own fiber from those forked in it, which merely inherit the context.
 *
 * @internal
 */
export interface Surroundings {
  readonly regions: ReadonlyMap<string, Region>
  readonly bodyOf: Asker
}

/** @internal */
export const CurrentSurroundings = Context.Reference<Surroundings>("@effect-lock/core/internal/Surroundings", {
  defaultValue: () => ({ regions: new Map(), bodyOf: { fiberId: -1, awaitedBy: new Set() } })
})

/**
 * The innermost open region of a key. A fiber may have outlived the one it was forked in, and still be inside an outer one.
 *
 * @internal
 */
export const find = (surroundings: Surroundings, id: string): Region | undefined =>
  Region.open(surroundings.regions.get(id))

/** @internal */
export const askerOf = (surroundings: Surroundings, fiberId: number): Asker =>
  surroundings.bodyOf.fiberId === fiberId ? surroundings.bodyOf : { fiberId, awaitedBy: new Set() }

/**
 * Whether `holder` cannot go on before `asker` does.
 *
 * @internal
 */
export const waitsFor = (holder: Asker, asker: Asker): boolean =>
  holder.fiberId === asker.fiberId || asker.awaitedBy.has(holder.fiberId)

/**
 * Runs the body of a lock in its region, which has ended and is empty before anything after it runs.
 *
 * @internal
 */
export const run = <A, E, R>(
  id: string,
  region: Region,
  asker: Asker,
  surroundings: Surroundings,
  body: Effect.Effect<A, E, R>
): Effect.Effect<A, E | LockLost, R> => {
  const regions = new Map<string, Region>()
  // Of one job that forks the next inside its lock, and so on, none may remember all before it.
  for (const inherited of surroundings.regions.keys()) {
    const open = find(surroundings, inherited)
    if (open !== undefined) regions.set(inherited, open)
  }
  regions.set(id, region)
  const awaitedBy = new Set(asker.awaitedBy).add(asker.fiberId)
  const inside = Effect.withFiber<A, E, R>((fiber) =>
    Effect.provideService(body, CurrentSurroundings, { regions, bodyOf: { fiberId: fiber.id, awaitedBy } })
  )
  const { holding, turnOf } = region
  const over = Deferred.await(holding.over)
  const check = failIf(() => holding.check() ?? (turnOf?.open === false ? ended(turnOf) : undefined))
  return Effect.onExit(
    protect(
      turnOf === undefined ? over : Effect.raceFirst(over, Deferred.await(turnOf.over)),
      { before: check, after: check },
      inside
    ),
    () => close(region)
  )
}

/**
 * Waits for a turn. False: the region ended first, so there is nothing to nest in any more.
 *
 * @internal
 */
export const takeTurn = (
  region: Region,
  turn: Turn,
  wait: { readonly timeout: number; readonly timeLeft: number },
  deadlock: () => LockDeadlock
): Effect.Effect<boolean, LockDeadlock | LockTimeout> =>
  Effect.suspend((): Effect.Effect<boolean, LockDeadlock | LockTimeout> => {
    if (!region.open) return Effect.succeed(false)
    const first = region.turns[0]
    if (first === undefined) {
      region.turns.push(turn)
      return Effect.succeed(true)
    }
    if (waitsFor(first.asker, turn.asker) || region.turns.some(sharesScope(turn))) return Effect.fail(deadlock())
    const { waitingTurns } = region.holding.client
    const circle = findCircle(region, turn, waitingTurns)
    if (circle !== undefined) return Effect.fail(inCircle(region, circle))
    region.turns.push(turn)
    turn.waitsIn = region
    for (const id of stuckWith(turn)) waitingTurns.set(id, (waitingTurns.get(id) ?? new Set()).add(turn))
    const called = Deferred.await(turn.called).pipe(
      Effect.ensuring(Effect.sync(() => stopWaiting(turn))),
      // On a stack of its own: thousands of turns must not run inside each other's ends.
      Effect.tap(() => Effect.yieldNow)
    )
    return wait.timeLeft === Infinity
      ? called
      : Effect.timeoutOrElse(called, {
        duration: Math.max(0, wait.timeLeft),
        orElse: () => Effect.fail(timedOut(region, turn, wait.timeout))
      })
  })

/** The fibers that cannot go on before a turn has come. */
const stuckWith = ({ asker }: Turn): ReadonlyArray<number> => [asker.fiberId, ...asker.awaitedBy]

const stopWaiting = (turn: Turn): void => {
  if (turn.waitsIn === undefined) return
  const { waitingTurns } = turn.waitsIn.holding.client
  turn.waitsIn = undefined
  for (const id of stuckWith(turn)) {
    const turns = waitingTurns.get(id)
    if (turns?.delete(turn) === true && turns.size === 0) waitingTurns.delete(id)
  }
}

/**
 * Fibers beside each other may nest the same keys in different orders. The region in which whoever is in front waits, however
 * indirectly, for a turn of the asker's own.
 */
const findCircle = (region: Region, { asker }: Turn, waiting: WaitingTurns): Region | undefined => {
  const seen = new Set<Turn>()
  const ahead = [region.turns[0]!]
  for (const { asker: holder } of ahead) {
    for (const turn of waiting.get(holder.fiberId) ?? []) {
      const front = turn.waitsIn?.turns[0]
      if (front === undefined || seen.has(turn)) continue
      if (waitsFor(front.asker, asker)) return turn.waitsIn
      seen.add(turn)
      ahead.push(front)
    }
  }
  return undefined
}

const inCircle = ({ holding: { key, token } }: Region, { holding: other }: Region): LockDeadlock =>
  new LockDeadlock({
    key,
    token,
    reason: "Order",
    detail:
      `whose turn it is waits for "${other.key}", where it is this fiber's turn. Nest them in one order, or take ` +
      "them together with Lock.withLocks"
  })

const sharesScope = (turn: Turn) => (other: Turn): boolean => other.scope === turn.scope

/**
 * Gives a turn back, taken or still waited for, and calls the next one. Harmless when repeated.
 *
 * @internal
 */
export const endTurn = (region: Region, turn: Turn): void => {
  turn.isDone = true
  stopWaiting(turn)
  const index = region.turns.indexOf(turn)
  if (index === -1) return
  region.turns.splice(index, 1)
  if (index === 0 && region.turns.length > 0) Deferred.doneUnsafe(region.turns[0]!.called, Effect.succeed(true))
  Deferred.doneUnsafe(turn.done, Effect.void)
}

/**
 * What is told to those who outlive a region.
 *
 * @internal
 */
export const ended = ({ holding }: Region): LockLost =>
  holding.loss ??
    new LockLost({ key: holding.key, holderId: holding.holderId, token: holding.token, reason: "Released" })

const close = (region: Region): Effect.Effect<void> =>
  Effect.suspend(() => {
    region.open = false
    // Who waits is sent off first: the current one may end, and call the next, as soon as it is told.
    const [current, ...waiting] = region.turns.splice(0)
    if (current !== undefined) region.turns.push(current)
    for (const turn of waiting) Deferred.doneUnsafe(turn.called, Effect.succeed(false))
    Deferred.doneUnsafe(region.over, Effect.suspend(() => Effect.fail(ended(region))))
    return current?.isBody === true ? Deferred.await(current.done) : Effect.void
  })

const timedOut = (region: Region, turn: Turn, waitTimeout: number): LockTimeout => {
  const { holding } = region
  return new LockTimeout({
    key: holding.key,
    permits: holding.permits,
    limit: holding.limit,
    waitTimeout,
    holders: [{
      holderId: holding.holderId,
      token: holding.token,
      permits: holding.permits,
      heldFor: Math.round(holding.heldFor()),
      timeLeft: Math.round(holding.timeLeft()),
      metadata: holding.metadata
    }],
    position: region.turns.indexOf(turn) - 1,
    queueLength: region.turns.length - 1
  })
}
