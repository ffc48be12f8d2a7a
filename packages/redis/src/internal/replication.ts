import * as LockError from "@effect-lock/core/LockError"
import * as LockStore from "@effect-lock/core/LockStore"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as RedisClient from "../RedisClient.ts"
import type { Script } from "./scripts.ts"

/** @internal */
export interface Settings {
  readonly acks: number
  readonly timeout: number
  readonly commandTimeout: number
}

type Confirm = (
  operation: string,
  lease: LockStore.Held,
  ttl: number
) => Effect.Effect<LockStore.Confirmation, LockError.LockStoreError>

/**
 * A store whose grants and renewals count only once enough replicas have them. `WAIT` speaks for what its own connection has
 * written, so the lease is renewed over that connection first: this shows that the server which is asked has the lease,
 * and comes after the grant in what is replicated, whoever sent that.
 *
 * @internal
 */
export const confirmed = Effect.fnUntraced(function*(
  store: LockStore.PermitStore["Service"],
  client: RedisClient.RedisClient,
  renewal: (lease: LockStore.Held, ttl: number) => readonly [
    script: Script,
    keys: ReadonlyArray<string>,
    args: ReadonlyArray<string | number>
  ],
  settings: Settings
): Effect.fn.Return<LockStore.PermitStore["Service"], LockError.LockStoreError, Scope.Scope> {
  const clock = yield* Clock.clockWith(Effect.succeed)
  const confirm = yield* makeConfirm(client, renewal, settings)

  /** A grant that is not confirmed is taken back before anybody learns of it. */
  const confirmGrant = (operation: string, { holderId, key, ttl }: LockStore.Request, { token }: LockStore.Grant) =>
    Effect.suspend(() => {
      const sentAt = LockStore.nowUnsafe(clock)
      return confirm(operation, { key, holderId, token }, ttl).pipe(
        Effect.map((answer): LockStore.Grant | undefined => answer === "Done" ? { token, ttl, sentAt } : undefined),
        Effect.tapError(() => Effect.ignore(store.abandon(key, holderId)))
      )
    })

  const orLost = (operation: string, grant: Effect.Effect<LockStore.Grant | undefined, LockError.LockStoreError>) =>
    Effect.filterOrFail(
      grant,
      (grant) => grant !== undefined,
      () =>
        new LockError.LockStoreError({
          store: store.name,
          operation,
          reason: "Unavailable",
          detail: "the server lost the grant before any replica could confirm it"
        })
    )

  return {
    ...store,
    attempt: (request) =>
      Effect.flatMap(store.attempt(request), (attempt): Effect.Effect<LockStore.Attempt, LockError.LockStoreError> => {
        switch (attempt._tag) {
          case "Refused":
          case "QueueFull":
          case "OtherLimit":
            return Effect.succeed(attempt)
          case "Granted":
            return Effect.map(
              orLost("attempt", confirmGrant("attempt", request, attempt.grant)),
              (grant) => ({ _tag: "Granted", grant })
            )
          case "Queued": {
            const signal = Effect.flatMap(
              attempt.signal,
              (signal): Effect.Effect<LockStore.Signal, LockError.LockStoreError> =>
                signal._tag === "LookAgain" ? Effect.succeed(signal) : Effect.map(
                  confirmGrant("attempt", request, signal.grant),
                  (grant) => grant === undefined ? { _tag: "LookAgain" } : { _tag: "Granted", grant }
                )
            )
            return Effect.succeed({ ...attempt, signal })
          }
        }
      }),
    renew: (lease, ttl) => confirm("renew", lease, ttl),
    takeover: (request) =>
      Effect.flatMap(
        store.takeover(request),
        (grant) => orLost("takeover", confirmGrant("takeover", request, grant))
      ),
    adopt: (ticket, request) =>
      Effect.flatMap(
        store.adopt(ticket, request),
        (adoption): Effect.Effect<LockStore.Adoption, LockError.LockStoreError> =>
          adoption._tag === "Refused" ? Effect.succeed(adoption) : Effect.map(
            orLost("adopt", confirmGrant("adopt", request, adoption.grant)),
            (grant) => ({ _tag: "Granted", grant })
          )
      )
  }
})

interface Job {
  readonly lease: LockStore.Held
  readonly ttl: number
  readonly done: Deferred.Deferred<Outcome, LockError.LockStoreError>
}

interface Outcome {
  readonly answer: LockStore.Confirmation
  readonly acks: number
}

/**
 * While one `WAIT` blocks the connection, whoever comes gathers for the next, which speaks for all of them: nobody waits for
 * more than two, and each ends by its own time-out (no gate: nothing is held meanwhile).
 */
const makeConfirm = Effect.fnUntraced(function*(
  client: RedisClient.RedisClient,
  renewal: Parameters<typeof confirmed>[2],
  { acks, commandTimeout, timeout }: Settings
): Effect.fn.Return<Confirm, LockError.LockStoreError, Scope.Scope> {
  const send = yield* client.dedicated(timeout)
  let gathered: Array<Job> = []
  let closed = false
  const unsettled = new Set<Job>()
  const some = Latch.makeUnsafe(false)
  const settleWith = (job: Job, outcome: Effect.Effect<Outcome, LockError.LockStoreError>): void => {
    unsettled.delete(job)
    Deferred.doneUnsafe(job.done, outcome)
  }
  // After the end of the fiber that would have settled them.
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      closed = true
      for (const job of unsettled) settleWith(job, closing)
    })
  )

  const settle = (jobs: ReadonlyArray<Job>): Effect.Effect<void> =>
    Effect.gen(function*() {
      const calls = jobs.map(({ lease, ttl }) => renewal(lease, ttl))
      const first = yield* send([
        ...calls.map(([{ sha }, keys, args]) => ["evalsha", sha, keys.length, ...keys, ...args]),
        ["wait", acks, timeout]
      ])
      const isUnknown = first.some((reply) => "error" in reply && reply.error.detail?.startsWith("NOSCRIPT") === true)
      const replies = isUnknown
        ? yield* send([
          ...calls.map(([{ source }, keys, args]) => ["eval", source, keys.length, ...keys, ...args]),
          ["wait", acks, timeout]
        ])
        : first
      const waited = replies[jobs.length]!
      for (const [i, job] of jobs.entries()) {
        const reply = replies[i]!
        const failed = "error" in reply ? reply : "error" in waited ? waited : undefined
        settleWith(
          job,
          failed !== undefined
            ? Effect.fail(failed.error)
            : Effect.succeed({
              answer: (reply as { readonly value: unknown }).value === 1 ? "Done" : "NotHeld",
              acks: Number((waited as { readonly value: unknown }).value)
            })
        )
      }
    }).pipe(
      Effect.catchCause((cause) =>
        Effect.sync(() => {
          for (const job of jobs) settleWith(job, Effect.failCause(cause))
        })
      )
    )

  yield* some.await.pipe(
    Effect.andThen(Effect.suspend(() => {
      some.closeUnsafe()
      const jobs = gathered
      gathered = []
      return settle(jobs)
    })),
    Effect.forever,
    Effect.forkScoped
  )

  return (operation, lease, ttl) => {
    const once = Effect.suspend(() => {
      if (closed) return closing
      const job: Job = { lease, ttl, done: Deferred.makeUnsafe() }
      unsettled.add(job)
      gathered.push(job)
      some.openUnsafe()
      return Deferred.await(job.done)
    })
    return once.pipe(
      Effect.retry({
        schedule: Schedule.spaced(50).pipe(Schedule.upTo({ duration: commandTimeout })),
        while: ({ reason }) => reason === "Unavailable"
      }),
      Effect.flatMap(({ acks: got, answer }) =>
        answer === "NotHeld" || got >= acks
          ? Effect.succeed(answer)
          : Effect.fail(
            new LockError.LockStoreError({
              store: "redis",
              operation,
              reason: "Timeout",
              limitName: "replicas.timeout",
              limit: timeout,
              detail: `${got} of ${acks} replicas confirmed it`
            })
          )
      )
    )
  }
})

const closing = Effect.fail(
  new LockError.LockStoreError({
    store: "redis",
    operation: "replicas",
    reason: "Refused",
    detail: "the store is closing"
  })
)
