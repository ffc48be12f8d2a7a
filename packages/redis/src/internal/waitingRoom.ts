import type * as LockError from "@effect-lock/core/LockError"
import * as LockStore from "@effect-lock/core/LockStore"
import type * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"

/**
 * The waiters of one client: what they are told by pushes, and one heartbeat for each key that has any. A heartbeat is
 * sign of life and poll in one; what it finds out reaches its waiters as a push would.
 *
 * @internal
 */
export interface WaitingRoom {
  /** Registers a waiter before its command is sent, or finds the one that asks again. */
  readonly enter: (request: LockStore.Request, offer: number, sentAt: LockStore.Instant) => Waiter
  /** The server has queued a waiter: its place, and when the key may change hands without a push. */
  readonly wait: (
    waiter: Waiter,
    ticket: string,
    next: number
  ) => Effect.Effect<Effect.Effect<LockStore.Signal, LockError.LockStoreError>>
  /** Whether the server has queued this waiter before. */
  readonly knows: (id: string) => boolean
  /** A grant that was waited for has come to its end: its place is not needed any more. */
  readonly used: (id: string) => void
  /** Nothing is waited for or held under this id any more. */
  readonly leave: (id: string) => void
  /** A grant arrived. One that nobody waits for any more expires on the server. */
  readonly granted: (id: string, grant: LockStore.Grant) => void
  /** The server has dropped this waiter, who is to ask again. */
  readonly dropped: (id: string) => void
  /** Messages may have been missed: ask for every key now. */
  readonly look: () => void
}

/** @internal */
export interface Settings {
  /** At most so long between two heartbeats of a key. */
  readonly interval: number
  readonly offer: number
  readonly liveness: number
  readonly outageTolerance: number
}

/** @internal */
export interface Waiter {
  readonly id: string
  readonly key: string
  readonly offer: number
  readonly enteredAt: LockStore.Instant
  /** The place in the queue, kept for the case that the server forgets it; empty until it is known. */
  ticket: string
  signal: Deferred.Deferred<LockStore.Signal, LockError.LockStoreError>
}

/** The waiters of a key that the server has queued, in that order. */
interface Queue {
  readonly key: string
  readonly waiters: Map<string, Waiter>
  interval: number
  /** When the key may change hands without a push. */
  next: number
  answeredAt: LockStore.Instant
  fiber: Fiber.Fiber<void> | undefined
}

/** `{next, {{id, token, time left}, ...}, {unknown id, ...}}` */
type HeartbeatReply = readonly [
  next: string,
  offers: ReadonlyArray<readonly [id: string, token: string, left: number]>,
  unknown: ReadonlyArray<string>
]

/** @internal */
export const make = Effect.fnUntraced(function*(
  heartbeat: (
    key: string,
    sentAt: LockStore.Instant,
    ids: ReadonlyArray<string>
  ) => Effect.Effect<unknown, LockError.LockStoreError>,
  settings: Settings,
  clock: Clock.Clock
): Effect.fn.Return<WaitingRoom, never, Scope.Scope> {
  const scope = yield* Scope.Scope
  const waiters = new Map<string, Waiter>()
  const queues = new Map<string, Queue>()

  const dequeue = ({ id, key }: Waiter): void => {
    const queue = queues.get(key)
    if (queue?.waiters.delete(id) === true && queue.waiters.size === 0) {
      queues.delete(key)
      queue.fiber?.interruptUnsafe()
    }
  }

  const leave = (id: string): void => {
    const waiter = waiters.get(id)
    if (waiter === undefined) return
    waiters.delete(id)
    dequeue(waiter)
  }

  // Its place is kept: an offer that ran out before anybody could use it is asked for again, from where it stood.
  const granted: WaitingRoom["granted"] = (id, grant) => {
    const waiter = waiters.get(id)
    if (waiter === undefined) return
    dequeue(waiter)
    Deferred.doneUnsafe(waiter.signal, Effect.succeed({ _tag: "Granted", grant }))
  }

  const dropped: WaitingRoom["dropped"] = (id) => {
    const waiter = waiters.get(id)
    if (waiter !== undefined) Deferred.doneUnsafe(waiter.signal, Effect.succeed({ _tag: "LookAgain" }))
  }

  const beat = (queue: Queue): Effect.Effect<void> =>
    Effect.suspend(() => {
      const sentAt = LockStore.nowUnsafe(clock)
      return heartbeat(queue.key, sentAt, takeTurns(queue)).pipe(
        Effect.map((reply) => {
          const [next, offers, unknown] = reply as HeartbeatReply
          queue.answeredAt = sentAt
          queue.next = Number(next)
          for (const [id, token, ttl] of offers) granted(id, { token: Number(token), ttl, sentAt })
          for (const id of unknown) if (queue.waiters.has(id)) dropped(id)
        }),
        Effect.catch((error) =>
          Effect.sync(() => {
            queue.next = Infinity
            if (LockStore.elapsedUnsafe(queue.answeredAt, clock) < settings.outageTolerance) return
            for (const waiter of Array.from(queue.waiters.values())) {
              leave(waiter.id)
              Deferred.doneUnsafe(waiter.signal, Effect.fail(error))
            }
          })
        )
      )
    })

  const watch = (queue: Queue): Effect.Effect<void> =>
    Effect.gen(function*() {
      while (queue.waiters.size > 0) {
        // Clients that wait for the same holder to run out of time do not all ask in the same instant.
        const untilChange = queue.next > 0 ? queue.next + 1 + (yield* Random.next) * Math.min(20, queue.next) : Infinity
        yield* Effect.sleep(Math.min(queue.interval, untilChange))
        yield* beat(queue)
      }
    })

  const missed = Latch.makeUnsafe(false)
  yield* missed.await.pipe(
    Effect.andThen(Effect.suspend(() => {
      missed.closeUnsafe()
      return Effect.forEach(Array.from(queues.values()), beat, { concurrency: "unbounded", discard: true })
    })),
    Effect.forever,
    Effect.forkIn(scope)
  )

  return {
    enter: (request, offer, sentAt) => {
      let waiter = waiters.get(request.holderId)
      if (waiter === undefined) {
        waiter = {
          id: request.holderId,
          key: request.key,
          offer,
          enteredAt: sentAt,
          ticket: "",
          signal: Deferred.makeUnsafe()
        }
        waiters.set(waiter.id, waiter)
      } else if (Deferred.isDoneUnsafe(waiter.signal)) {
        waiter.signal = Deferred.makeUnsafe()
      }
      return waiter
    },
    wait: (waiter, ticket, next) =>
      Effect.suspend(() => {
        waiter.ticket = ticket
        const signal = Deferred.await(waiter.signal)
        // Granted or gone already: the push overtook the reply, or the wait was given up.
        if (waiters.get(waiter.id) !== waiter || Deferred.isDoneUnsafe(waiter.signal)) return Effect.succeed(signal)
        let queue = queues.get(waiter.key)
        if (queue === undefined) {
          queue = {
            key: waiter.key,
            waiters: new Map(),
            interval: settings.interval,
            next,
            answeredAt: waiter.enteredAt,
            fiber: undefined
          }
          queues.set(waiter.key, queue)
        }
        queue.waiters.set(waiter.id, waiter)
        // A grant's stamp must be younger than the offer is long.
        queue.interval = Math.min(queue.interval, Math.max(1, waiter.offer / 3))
        if (queue.fiber !== undefined) return Effect.succeed(signal)
        const started = queue
        return Effect.map(Effect.forkIn(watch(started), scope, { startImmediately: true }), (fiber) => {
          started.fiber = fiber
          return signal
        })
      }),
    knows: (id) => {
      const waiter = waiters.get(id)
      return waiter !== undefined && waiter.ticket !== ""
    },
    used: (id) => {
      const waiter = waiters.get(id)
      if (waiter !== undefined && Deferred.isDoneUnsafe(waiter.signal)) leave(id)
    },
    leave,
    granted,
    dropped,
    look: () => void missed.openUnsafe()
  }
})

const maxAsked = 32

/** The ids a heartbeat asks about: all in turn, a bounded number at a time. */
const takeTurns = (queue: Queue): ReadonlyArray<string> => {
  const asked = Array.from(queue.waiters).slice(0, maxAsked)
  for (const [id, waiter] of asked) {
    // To the end of the line of those asked about; the server keeps the order of grants.
    queue.waiters.delete(id)
    queue.waiters.set(id, waiter)
  }
  return asked.map(([id]) => id)
}
