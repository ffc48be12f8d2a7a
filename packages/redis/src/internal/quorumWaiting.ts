import type * as LockError from "@effect-lock/core/LockError"
import type * as LockStore from "@effect-lock/core/LockStore"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"

/** @internal */
export interface Waiter {
  readonly key: string
  readonly holderId: string
  /** Done when it is worth looking again. */
  wake: Deferred.Deferred<void>
  /** Until when a waiter keeps its turn without asking again. */
  turnUntil: number
  standing: ReadonlyArray<LockError.HolderInfo>
}

/**
 * The waiters of one client, who take turns key by key, in the order in which they came: the first of them asks the voters, so
 * that waiters of one process do not split the vote, and a key costs one poll per client however many wait.
 *
 * @internal
 */
export class Turns<W extends Waiter> {
  readonly #queues = new Map<string, Map<string, W>>()
  readonly #now: () => number

  constructor(now: () => number) {
    this.#now = now
  }

  waiters(key: string): ReadonlyArray<W> {
    return Array.from(this.#queues.get(key)?.values() ?? [])
  }

  count(key: string): number {
    return this.#queues.get(key)?.size ?? 0
  }

  has({ holderId, key }: W): boolean {
    return this.#queues.get(key)?.has(holderId) === true
  }

  enter(waiter: W): void {
    const queue = this.#queues.get(waiter.key)
    if (queue === undefined) this.#queues.set(waiter.key, new Map([[waiter.holderId, waiter]]))
    else if (!queue.has(waiter.holderId)) queue.set(waiter.holderId, waiter)
  }

  /** Nobody's turn is kept waiting by one that does not come back for it. */
  turn(key: string): W | undefined {
    const time = this.#now()
    for (const waiter of this.#queues.get(key)?.values() ?? []) if (waiter.turnUntil > time) return waiter
    return undefined
  }

  leave(waiter: W): void {
    const queue = this.#queues.get(waiter.key)
    if (queue === undefined) return
    const hadTurn = this.turn(waiter.key) === waiter
    queue.delete(waiter.holderId)
    if (queue.size === 0) this.#queues.delete(waiter.key)
    const next = hadTurn ? this.turn(waiter.key) : undefined
    if (next !== undefined) Deferred.doneUnsafe(next.wake, Effect.void)
  }

  placeOf(key: string, holderId: string): Pick<LockStore.Standing, "position" | "queueLength"> {
    const queue = this.#queues.get(key)
    return queue === undefined
      ? { position: -1, queueLength: 0 }
      : { position: Array.from(queue.keys()).indexOf(holderId), queueLength: queue.size }
  }
}
