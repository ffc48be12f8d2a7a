import type { LockStoreError } from "@effect-lock/core/LockError"
import * as LockStore from "@effect-lock/core/LockStore"
import { assert } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Crypto from "node:crypto"
import { expected, Subject } from "./subject.ts"

/** A ttl that does not run out during a check. */
export const forever = 600_000

export const freshKey: Effect.Effect<string> = Effect.sync(() => Crypto.randomUUID())

/** What a contender asks for, and with which client. Default: one permit of one, waiting, for ever. */
export interface Wish extends Partial<Omit<LockStore.Request, "key">> {
  readonly client?: 0 | 1 | undefined
  /** Asks instead of that client, which still tidies up. */
  readonly store?: LockStore.LockStore["Service"] | undefined
}

/**
 * Who wants a key, with a new holder id. Every trace is gone when the check ends.
 */
export const contend = (
  key: string,
  { client = 0, store, ...wish }: Wish = {}
): Effect.Effect<Contender, never, Subject | Scope.Scope> =>
  Effect.flatMap(Subject, ({ clients, permitClients }) =>
    Effect.acquireRelease(
      Effect.sync(() =>
        new Contender(store ?? clients[client], permitClients?.[client], {
          key,
          holderId: Crypto.randomUUID(),
          ttl: forever,
          permits: 1,
          limit: 1,
          wait: true,
          priority: 0,
          maxWaiters: Infinity,
          floor: 0,
          metadata: {},
          ...wish
        })
      ),
      (contender) => Effect.ignore(clients[client].abandon(key, contender.id))
    ))

export class Contender {
  readonly store: LockStore.LockStore["Service"]
  readonly #permitStore: LockStore.PermitStore["Service"] | undefined
  readonly request: LockStore.Request
  token = 0
  answer: LockStore.Attempt | undefined = undefined

  constructor(
    store: LockStore.LockStore["Service"],
    permitStore: LockStore.PermitStore["Service"] | undefined,
    request: LockStore.Request
  ) {
    this.store = store
    this.#permitStore = permitStore
    this.request = request
  }

  get permitStore(): LockStore.PermitStore["Service"] {
    assert(this.#permitStore !== undefined, "the layer provides no PermitStore")
    return this.#permitStore
  }

  get id(): string {
    return this.request.holderId
  }

  get held(): LockStore.Held {
    return { key: this.request.key, holderId: this.id, token: this.token }
  }

  /** The port's own verb. */
  ask(change: Partial<LockStore.Request> = {}): Effect.Effect<LockStore.Attempt, LockStoreError> {
    return Effect.tap(this.store.attempt({ ...this.request, ...change }), (answer) =>
      Effect.sync(() => {
        this.answer = answer
        if (answer._tag === "Granted") this.token = answer.grant.token
      }))
  }

  /** Asks, and has to be granted at once. */
  take(change: Partial<LockStore.Request> = {}): Effect.Effect<LockStore.Grant, LockStoreError> {
    return Effect.map(this.ask({ wait: false, ...change }), (answer) => {
      assert(answer._tag === "Granted", `expected a grant, not ${describe(answer)}`)
      return answer.grant
    })
  }

  /** Asks without waiting, and has to be refused. */
  refused(change: Partial<LockStore.Request> = {}): Effect.Effect<LockStore.Standing, LockStoreError> {
    return Effect.map(this.ask({ wait: false, ...change }), (answer) => {
      assert(answer._tag === "Refused", `expected a refusal, not ${describe(answer)}`)
      return answer.standing
    })
  }

  /** Asks, and has to wait. */
  queue(change: Partial<LockStore.Request> = {}): Effect.Effect<LockStore.Standing, LockStoreError> {
    return Effect.map(this.ask({ wait: true, ...change }), (answer) => {
      assert(answer._tag === "Queued", `expected to be queued, not ${describe(answer)}`)
      return answer.standing
    })
  }

  /** Asks if it has not yet, and waits for its grant. */
  get granted(): Effect.Effect<LockStore.Grant, LockStoreError, Subject> {
    return expected(
      "the grant",
      Effect.gen({ self: this }, function*() {
        let answer = this.answer ?? (yield* this.ask())
        while (true) {
          if (answer._tag === "Granted") return answer.grant
          assert(answer._tag === "Queued", "a waiter must not be refused")
          const signal = yield* answer.signal
          if (signal._tag === "Granted") {
            this.token = signal.grant.token
            return signal.grant
          }
          answer = yield* this.ask()
        }
      })
    )
  }

  renew(ttl: number, as: Partial<LockStore.Held> = {}): Effect.Effect<LockStore.Confirmation, LockStoreError> {
    return Effect.suspend(() => this.store.renew({ ...this.held, ...as }, ttl))
  }

  release(keepFor = 0, as: Partial<LockStore.Held> = {}): Effect.Effect<LockStore.Confirmation, LockStoreError> {
    return Effect.suspend(() => this.store.release({ ...this.held, ...as }, keepFor))
  }

  /** Releases, which has to succeed. */
  get leave(): Effect.Effect<void, LockStoreError> {
    return Effect.map(this.release(), (answer) => assert.strictEqual(answer, "Done", "release"))
  }

  shrink(permits: number, as: Partial<LockStore.Held> = {}): Effect.Effect<LockStore.Confirmation, LockStoreError> {
    return Effect.suspend(() => this.permitStore.shrink({ ...this.held, ...as }, permits))
  }

  setLimit(limit: number, declared = this.request.limit): Effect.Effect<LockStore.LimitSet, LockStoreError> {
    return Effect.suspend(() => this.permitStore.setLimit(this.request.key, declared, limit))
  }

  watch(as: Partial<LockStore.Held> = {}): Effect.Effect<LockStore.Watch, LockStoreError> {
    return Effect.suspend(() => this.store.watch({ ...this.held, ...as }))
  }

  get abandon(): Effect.Effect<LockStore.Standing, LockStoreError> {
    return Effect.suspend(() => this.store.abandon(this.request.key, this.id))
  }

  get inspect(): Effect.Effect<LockStore.KeyState, LockStoreError> {
    return Effect.suspend(() => this.store.inspect(this.request.key))
  }

  /** Waits to be told to look again; nothing else may come. */
  get sentBack(): Effect.Effect<void, LockStoreError, Subject> {
    return expected(
      "advice to look again",
      Effect.gen({ self: this }, function*() {
        assert(this.answer?._tag === "Queued")
        assert.strictEqual((yield* this.answer.signal)._tag, "LookAgain")
      })
    )
  }

  /** What the store knows of this holder; undefined when it holds nothing. */
  get standing(): Effect.Effect<LockStore.KeyState["holders"][number] | undefined, LockStoreError> {
    return Effect.map(this.inspect, ({ holders }) => holders.find(({ holderId }) => holderId === this.id))
  }

  /** A holder must not believe in its lease for longer than the store keeps it. */
  isHonest(grant: LockStore.Grant): Effect.Effect<void, LockStoreError> {
    return Effect.gen({ self: this }, function*() {
      const clock = yield* Clock.clockWith(Effect.succeed)
      const inStore = yield* this.standing
      const believed = grant.ttl * (1 - this.store.driftFactor) - LockStore.elapsedUnsafe(grant.sentAt, clock)
      if (believed <= 0) return
      assert(inStore !== undefined, `believes in ${believed} ms more, but holds nothing`)
      // The store may count in whole milliseconds.
      assert.isAtMost(believed, inStore.timeLeft + 1, "the time a holder believes to have left, and what is left")
    })
  }
}

const describe = (answer: LockStore.Attempt): string => `${answer._tag}(${JSON.stringify(answer)})`

export const idsOf = (infos: ReadonlyArray<{ readonly holderId: string }>): ReadonlyArray<string> =>
  infos.map(({ holderId }) => holderId)
