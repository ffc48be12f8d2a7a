import type * as LockError from "@effect-lock/core/LockError"
import * as LockStore from "@effect-lock/core/LockStore"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberSet from "effect/FiberSet"
import * as Pull from "effect/Pull"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Os from "node:os"
import * as ballots from "./quorumBallot.ts"
import * as inspection from "./quorumInspection.ts"
import { letGo } from "./quorumRelease.ts"
import * as scripts from "./quorumScripts.ts"
import { Turns, type Waiter } from "./quorumWaiting.ts"

/** @internal */
export interface Settings {
  readonly name: string
  readonly retry: Schedule.Schedule<unknown>
  readonly outageTolerance: number
}

/** @internal */
export interface Store {
  readonly service: LockStore.LockStore["Service"]
  /** A voter has told this client of a release, or of the eviction of one of its holders. */
  readonly receive: (from: ReadonlyArray<ballots.Voter>, message: string) => void
  /** A voter may have forgotten votes, on this key or on any. */
  readonly doubt: (key?: string) => void
}

/** Who asked for a key through this store, from the first attempt until the release or abandon. */
interface Entry extends Waiter {
  readonly metadata: Readonly<Record<string, string>>
  readonly since: LockStore.Instant
  /** Done when the attempt under way has ended. */
  asking: Deferred.Deferred<void> | undefined
  lease: ballots.Ballot | undefined
  /** The voters that confirmed a release, over all tries. */
  readonly releasedBy: Set<ballots.Voter>
  /** How often a voter has told of an eviction, and how many of these a majority was confirmed after. */
  evictions: number
  outlived: number
  /** The next delay; fails with `Done` when there are no more tries. */
  step: ((now: number) => Pull.Pull<[unknown, Duration.Duration], never, unknown>) | undefined
  answeredAt: LockStore.Instant | undefined
  heardFrom: { readonly nonce: string; readonly voters: Set<ballots.Voter> } | undefined
  rounds: number
}

/**
 * The store over an electorate.
 *
 * @internal
 */
export const make = Effect.fnUntraced(function*(
  electorate: ballots.Electorate,
  settings: Settings
): Effect.fn.Return<Store, never, Scope.Scope> {
  const { clock, voters } = electorate
  const { maxTtl, retention, voterTimeout } = electorate.settings
  const quorum = ballots.quorumOf(electorate)
  const entries = new Map<string, Entry>()
  /** Told when another of this client queues. */
  const watched = new Set<Entry>()
  const now = () => LockStore.nowUnsafe(clock)
  const monotonic = () => now().monotonic
  const turns = new Turns<Entry>(monotonic)
  const undecided = (operation: string, votes: ReadonlyMap<ballots.Voter, ballots.Vote>) =>
    inspection.undecided(electorate, settings.name, operation, votes)

  const enter = (request: LockStore.Request): Entry => {
    let entry = entries.get(request.holderId)
    if (entry === undefined) {
      entry = {
        key: request.key,
        holderId: request.holderId,
        metadata: request.metadata,
        since: now(),
        asking: undefined,
        lease: undefined,
        releasedBy: new Set(),
        evictions: 0,
        outlived: 0,
        step: undefined,
        wake: Deferred.makeUnsafe(),
        turnUntil: Infinity,
        standing: [],
        answeredAt: undefined,
        heardFrom: undefined,
        rounds: 0
      }
      entries.set(request.holderId, entry)
    }
    return entry
  }

  const forget = (entry: Entry): void => {
    turns.leave(entry)
    watched.delete(entry)
    if (entries.get(entry.holderId) === entry) entries.delete(entry.holderId)
  }

  const cast = (
    request: LockStore.Request,
    entry: Entry,
    mode: ballots.Wish["mode"] = "ask",
    ticket?: LockStore.Held
  ): Effect.Effect<ballots.Verdict> =>
    Effect.suspend(() => {
      entry.rounds++
      return ballots.cast(electorate, {
        key: request.key,
        holderId: request.holderId,
        ttl: request.ttl,
        floor: request.floor,
        metadata: JSON.stringify(request.metadata),
        listenFor: !request.wait || mode !== "ask" ? 0 : listenFor,
        since: Math.floor(entry.since.wall),
        mode,
        ticket
      })
    })

  const granted = (entry: Entry, ballot: ballots.Ballot): Effect.Effect<LockStore.Attempt> =>
    Effect.suspend((): Effect.Effect<LockStore.Attempt> => {
      // Abandoned while it was asked for.
      if (entries.get(entry.holderId) !== entry) {
        return Effect.as(ballots.end(electorate, ballot), {
          _tag: "Refused",
          standing: { holders: [], position: -1, queueLength: 0 }
        })
      }
      turns.leave(entry)
      return Effect.succeed({ _tag: "Granted", grant: grantOf(entry, ballot) })
    })

  const remember = (entry: Entry, verdict: Lost): void => {
    if (verdict.reason !== "unavailable") entry.answeredAt = now()
    entry.standing = inspection.holdersIn(quorum, ballots.holdersOf(verdict.ballot.votes), 0)
  }

  const slow = (request: LockStore.Request, operation: string): LockError.LockStoreError =>
    inspection.failure(
      settings.name,
      operation,
      "Timeout",
      `a majority voted for "${request.key}", but took longer than its ttl of ${request.ttl} ms`,
      ["ttl", request.ttl]
    )

  const backOff = <A, E>(entry: Entry, next: Effect.Effect<A, E>): Effect.Effect<A, E> =>
    Random.nextBetween(0, 5 * 2 ** entry.rounds).pipe(
      Effect.flatMap((delay) => Effect.sleep(Math.min(delay, 100))),
      Effect.andThen(next)
    )

  /** Asks once, and again only where the votes were split: then it is not known yet whether anybody has the key. */
  const attemptNow = (
    request: LockStore.Request,
    entry: Entry,
    tries: number
  ): Effect.Effect<LockStore.Attempt, LockError.LockStoreError> =>
    Effect.flatMap(
      cast(request, entry),
      (verdict): Effect.Effect<LockStore.Attempt, LockError.LockStoreError> => {
        if (verdict._tag === "Won") return granted(entry, verdict.ballot)
        remember(entry, verdict)
        switch (verdict.reason) {
          case "unavailable":
            return Effect.fail(undecided("attempt", verdict.ballot.votes))
          case "slow":
            return Effect.fail(slow(request, "attempt"))
          case "split":
            if (tries > 1) return backOff(entry, attemptNow(request, entry, tries - 1))
        }
        const standing = { holders: entry.standing, ...turns.placeOf(entry.key, entry.holderId) }
        return Effect.succeed({ _tag: "Refused", standing })
      }
    )

  /** The next delay, or undefined when the schedule has no more. */
  const delayOf = (entry: Entry): Effect.Effect<number | undefined> =>
    Effect.gen(function*() {
      entry.step ??= (yield* Schedule.toStep(settings.retry)) as unknown as NonNullable<Entry["step"]>
      return yield* entry.step(now().wall).pipe(
        Effect.map(([, delay]): number | undefined => Math.max(1, Duration.toMillis(delay))),
        Pull.catchDone(() => Effect.succeed(undefined))
      )
    })

  const queued = (entry: Entry, until: number): LockStore.Attempt => ({
    _tag: "Queued",
    standing: { holders: entry.standing, ...turns.placeOf(entry.key, entry.holderId) },
    signal: Effect.suspend(() =>
      Effect.as(
        Effect.timeoutOption(Deferred.await(entry.wake), Math.max(1, until - monotonic())),
        { _tag: "LookAgain" } as const
      )
    )
  })

  const attemptInTurn = (
    request: LockStore.Request,
    entry: Entry
  ): Effect.Effect<LockStore.Attempt, LockError.LockStoreError> =>
    Effect.suspend(() => {
      if (Deferred.isDoneUnsafe(entry.wake)) entry.wake = Deferred.makeUnsafe()
      if (!turns.has(entry)) {
        const ahead = turns.count(entry.key)
        if (ahead >= request.maxWaiters) {
          // Nobody may wait: all it can have is a key that is free.
          return ahead === 0 ? Effect.map(attemptNow(request, entry, 10), full) : Effect.succeed(full({
            _tag: "Refused",
            standing: { holders: turns.turn(entry.key)?.standing ?? [], ...turns.placeOf(entry.key, entry.holderId) }
          }))
        }
        turns.enter(entry)
        for (const { holderId, key, lease } of watched) {
          if (key === entry.key && lease?.isOver === false) tell({ _tag: "Wanted", holderId })
        }
      }
      // An attempt takes two polls at most.
      const patience = 2 * voterTimeout + 1000
      entry.turnUntil = monotonic() + patience
      const turn = turns.turn(entry.key)!
      if (turn !== entry) {
        entry.standing = turn.standing
        entry.turnUntil = turn.turnUntil + patience
        return Effect.succeed(queued(entry, turn.turnUntil))
      }
      return Effect.flatMap(cast(request, entry), (verdict) =>
        verdict._tag === "Won"
          ? granted(entry, verdict.ballot)
          : Effect.flatMap(delayOf(entry), (delay) => afterLoss(request, entry, verdict, delay, patience)))
    })

  const afterLoss = (
    request: LockStore.Request,
    entry: Entry,
    verdict: Lost,
    delay: number | undefined,
    patience: number
  ): Effect.Effect<LockStore.Attempt, LockError.LockStoreError> => {
    remember(entry, verdict)
    const { answeredAt } = entry
    if (
      verdict.reason === "unavailable" &&
      (answeredAt === undefined || LockStore.elapsedUnsafe(answeredAt, clock) > settings.outageTolerance)
    ) {
      return Effect.fail(undecided("attempt", verdict.ballot.votes))
    }
    if (delay === undefined) {
      const outcomes = ballots.describe(electorate, verdict.ballot.votes)
      return Effect.fail(
        verdict.reason === "slow"
          ? slow(request, "attempt")
          : inspection.failure(
            settings.name,
            "attempt",
            "Refused",
            `not granted in ${entry.rounds} tries, and retry has no more: ${outcomes}`
          )
      )
    }
    const lookAt = monotonic() + delay
    entry.turnUntil = lookAt + patience
    return Effect.succeed(queued(entry, lookAt))
  }

  const grantOf = (entry: Entry, ballot: ballots.Ballot): LockStore.Grant => {
    entries.set(entry.holderId, entry)
    entry.lease = ballot
    return { token: ballot.token, ttl: ballot.wish.ttl, sentAt: ballot.sentAt }
  }

  /** The grant that this holder id has, if it still has it. */
  const sameGrant = (
    operation: string,
    request: LockStore.Request,
    entry: Entry
  ): Effect.Effect<LockStore.Grant | undefined, LockError.LockStoreError> => {
    const { lease } = entry
    // One whose release is not confirmed yet is not given again: it is taken back sooner or later.
    if (lease === undefined || lease.isOver) {
      entry.lease = undefined
      return Effect.succeed(undefined)
    }
    const sentAt = now()
    const held = { key: request.key, holderId: request.holderId, token: lease.token }
    return Effect.flatMap(renewLease(operation, held, request.ttl, entry), (answer) => {
      if (answer === "Done") return Effect.succeed({ token: lease.token, ttl: request.ttl, sentAt })
      entry.lease = undefined
      return Effect.as(ballots.end(electorate, lease), undefined)
    })
  }

  const ask = (
    request: LockStore.Request,
    entry: Entry
  ): Effect.Effect<LockStore.Attempt, LockError.LockStoreError> =>
    request.wait ? attemptInTurn(request, entry) : attemptNow(request, entry, 10)

  const check = (operation: string, { limit, permits, ttl }: LockStore.Request): LockError.LockStoreError | undefined =>
    permits === 1 && limit === 1 ? checkTtl(operation, ttl) : inspection.failure(
      settings.name,
      operation,
      "Refused",
      `${permits} of ${limit} permits: votes of a majority make a mutex, not a semaphore; use RedisLockStore for permits`
    )

  /** One round at a time for a holder id: what is sent twice finds what the first got. */
  const inTurn = <A>(
    operation: string,
    request: LockStore.Request,
    ask: (entry: Entry) => Effect.Effect<A, LockError.LockStoreError>,
    isOver: (answer: A) => boolean
  ): Effect.Effect<A, LockError.LockStoreError> =>
    Effect.suspend(() => {
      const refused = check(operation, request)
      if (refused !== undefined) return Effect.fail(refused)
      const entry = enter(request)
      if (entry.asking !== undefined) {
        return Effect.andThen(Deferred.await(entry.asking), inTurn(operation, request, ask, isOver))
      }
      const asking = entry.asking = Deferred.makeUnsafe<void>()
      return Effect.onExit(Effect.suspend(() => ask(entry)), (exit) =>
        Effect.sync(() => {
          entry.asking = undefined
          // A waiter that was interrupted keeps its place: it is abandoned, or asks again.
          const ends = Exit.isSuccess(exit) ? isOver(exit.value) : !request.wait || !Exit.hasInterrupts(exit)
          if (ends && entry.lease === undefined) forget(entry)
          Deferred.doneUnsafe(asking, Effect.void)
        }))
    })

  const attempt: LockStore.LockStore["Service"]["attempt"] = (request) =>
    inTurn(
      "attempt",
      request,
      (entry) =>
        Effect.flatMap(sameGrant("attempt", request, entry), (grant) =>
          grant === undefined
            ? ask(request, entry)
            : Effect.succeed<LockStore.Attempt>({ _tag: "Granted", grant })),
      ({ _tag }) => _tag === "Refused" || _tag === "QueueFull"
    )

  const takeover: LockStore.LockStore["Service"]["takeover"] = (request) =>
    inTurn(
      "takeover",
      request,
      (entry) =>
        Effect.flatMap(sameGrant("takeover", request, entry), (grant) =>
          grant === undefined ? takeNow(request, entry, 10) : Effect.succeed(grant)),
      () =>
        false
    )

  const takeNow = (
    request: LockStore.Request,
    entry: Entry,
    tries: number
  ): Effect.Effect<LockStore.Grant, LockError.LockStoreError> =>
    Effect.flatMap(
      cast(request, entry, "take"),
      (verdict): Effect.Effect<LockStore.Grant, LockError.LockStoreError> => {
        if (verdict._tag === "Won") return Effect.succeed(grantOf(entry, verdict.ballot))
        // Votes taken away by another take-over, before they were confirmed: one of the two comes last.
        if (verdict.reason === "split" && tries > 1) return backOff(entry, takeNow(request, entry, tries - 1))
        return Effect.fail(
          verdict.reason === "slow" ? slow(request, "takeover") : undecided("takeover", verdict.ballot.votes)
        )
      }
    )

  const transfer: LockStore.LockStore["Service"]["transfer"] = (held, ticketId) =>
    Effect.suspend((): Effect.Effect<LockStore.Transfer, LockError.LockStoreError> => {
      const entry = leaseOf(held)
      if (entry === null || entry?.lease?.isOver === true) return Effect.succeed({ _tag: "NotHeld" })
      const votes = new Map<ballots.Voter, ballots.Vote>()
      const left: Array<number> = []
      let denied = 0
      return ballots.poll(
        electorate,
        ballots.reachable(electorate, votes),
        (voter) =>
          Effect.map(
            ballots.answerOf(
              voter.run(scripts.transfer, [voter.keyOf(held.key)], [
                entry?.lease?.nonce ?? "",
                held.holderId,
                held.token,
                ticketId
              ])
            ),
            (answer) => {
              if (ballots.isNoAnswer(answer)) votes.set(voter, answer)
              else if ((answer as TransferReply)[0] === 1) left.push(Number((answer as TransferReply)[1]))
              else denied++
            }
          ),
        (pending) => denied > voters.length - quorum || left.length + pending < quorum,
        votes
      ).pipe(
        Effect.andThen(
          Effect.suspend((): Effect.Effect<LockStore.Transfer, LockError.LockStoreError> => {
            if (left.length < quorum) {
              return denied > voters.length - quorum
                ? Effect.succeed({ _tag: "NotHeld" })
                : Effect.fail(undecided("transfer", votes))
            }
            if (entry?.lease !== undefined) {
              entry.lease.isOver = true
              forget(entry)
            }
            return Effect.succeed({ _tag: "Done", timeLeft: left.toSorted((a, b) => b - a)[quorum - 1]! })
          })
        )
      )
    })

  const adopt: LockStore.LockStore["Service"]["adopt"] = (ticket, request) =>
    inTurn(
      "adopt",
      request,
      (entry) =>
        Effect.flatMap(sameGrant("adopt", request, entry), (grant) =>
          grant === undefined
            ? adoptNow(ticket, request, entry, 10)
            : Effect.succeed<LockStore.Adoption>({ _tag: "Granted", grant })),
      ({ _tag }) => _tag === "Refused"
    )

  const adoptNow = (
    ticket: LockStore.Held,
    request: LockStore.Request,
    entry: Entry,
    tries: number
  ): Effect.Effect<LockStore.Adoption, LockError.LockStoreError> =>
    Effect.flatMap(
      cast(request, entry, "adopt", ticket),
      (verdict): Effect.Effect<LockStore.Adoption, LockError.LockStoreError> => {
        if (verdict._tag === "Won") {
          return Effect.succeed({ _tag: "Granted", grant: grantOf(entry, verdict.ballot) })
        }
        const { votes } = verdict.ballot
        if (verdict.reason === "unavailable") return Effect.fail(undecided("adopt", votes))
        if (verdict.reason === "slow") return Effect.fail(slow(request, "adopt"))
        const reasons = new Set<string>()
        const adopters: Array<ballots.Holder> = []
        let spent = 0
        for (const vote of votes.values()) {
          if (vote._tag !== "Spent") continue
          reasons.add(vote.reason)
          // Perhaps two adopt at the same time and neither has a majority, or one has failed: what they got is put back.
          if (vote.reason === "Adopted" && vote.by !== undefined && ballots.isYoung(electorate, vote.by)) {
            adopters.push(vote.by)
          } else spent++
        }
        if (spent < quorum) {
          if (tries > 1) return backOff(entry, adoptNow(ticket, request, entry, tries - 1))
          const isAdopted = ballots.tally(adopters).some(({ length }) => length >= quorum)
          if (!isAdopted) return Effect.fail(undecided("adopt", votes))
        }
        const reason = reasons.has("Adopted") ? "Adopted" : reasons.has("TakenOver") ? "TakenOver" : "Expired"
        return Effect.succeed({ _tag: "Refused", reason })
      }
    )

  const listeners = new Set<(news: LockStore.News) => void>()
  const tell = (news: LockStore.News): void => {
    for (const listener of listeners) listener(news)
  }
  const onNews: LockStore.LockStore["Service"]["onNews"] = (listener) =>
    Effect.acquireRelease(
      Effect.sync(() => void listeners.add(listener)),
      () => Effect.sync(() => listeners.delete(listener))
    )

  const checkTtl = (operation: string, ttl: number): LockError.LockStoreError | undefined =>
    ttl <= maxTtl ? undefined : inspection.failure(
      settings.name,
      operation,
      "Refused",
      `ttl of ${ttl} ms is above maxTtl of ${maxTtl} ms, for which a voter that restarted is kept out`
    )

  const renewLease = (
    operation: string,
    { holderId, key, token }: LockStore.Held,
    ttl: number,
    entry: Entry | undefined
  ): Effect.Effect<LockStore.Confirmation, LockError.LockStoreError> =>
    Effect.suspend(() => {
      const lease = entry?.lease
      const evictions = entry?.evictions ?? 0
      const votes = new Map<ballots.Voter, ballots.Vote>()
      const missing = new Set<ballots.Voter>()
      let confirmed = 0
      let denied = 0
      let isConfirmed = false
      lease?.reach(now(), ttl, electorate)
      const healOne = (voter: ballots.Voter) =>
        lease === undefined
          ? Effect.void
          : Effect.asVoid(FiberSet.run(electorate.background, ballots.heal(electorate, lease, voter, ttl)))
      return ballots.poll(
        electorate,
        ballots.reachable(electorate, votes),
        (voter) =>
          Effect.flatMap(
            ballots.answerOf(
              voter.run(scripts.extend, [voter.keyOf(key)], [lease?.nonce ?? "", holderId, token, ttl, retention])
            ),
            (answer) => {
              if (ballots.isNoAnswer(answer)) {
                votes.set(voter, answer)
                return Effect.void
              }
              if (answer === 1) {
                confirmed++
                return Effect.void
              }
              denied++
              if (answer === 2) return Effect.void
              // Only existing leases make a majority; only a round that has one votes anew where there is none.
              missing.add(voter)
              return isConfirmed ? healOne(voter) : Effect.void
            }
          ),
        (pending) =>
          confirmed >= quorum || denied > voters.length - quorum ||
          (confirmed + pending < quorum && denied + pending <= voters.length - quorum),
        votes
      ).pipe(
        Effect.andThen(
          Effect.suspend((): Effect.Effect<LockStore.Confirmation, LockError.LockStoreError> => {
            if (confirmed >= quorum) {
              isConfirmed = true
              if (entry !== undefined) entry.outlived = Math.max(entry.outlived, evictions)
              return Effect.as(Effect.forEach(missing, healOne, { discard: true }), "Done")
            }
            return denied > voters.length - quorum
              ? Effect.succeed("NotHeld")
              : Effect.fail(undecided(operation, votes))
          })
        )
      )
    })

  /** The lease that is meant, if this store has it; null if it has another one of that holder. */
  const leaseOf = ({ holderId, key, token }: LockStore.Held): Entry | undefined | null => {
    const entry = entries.get(holderId)
    return entry === undefined ? undefined : entry.key === key && entry.lease?.token === token ? entry : null
  }

  const renew: LockStore.LockStore["Service"]["renew"] = (held, ttl) =>
    Effect.suspend(() => {
      const tooLong = checkTtl("renew", ttl)
      if (tooLong !== undefined) return Effect.fail(tooLong)
      const entry = leaseOf(held)
      if (entry === null || entry?.lease?.isOver === true) return Effect.succeed("NotHeld" as const)
      return Effect.map(renewLease("renew", held, ttl, entry), (answer) => {
        if (answer === "NotHeld" && entry !== undefined && entry.evictions > entry.outlived) {
          tell({ _tag: "TakenOver", holderId: held.holderId })
        }
        return answer
      })
    })

  const release: LockStore.LockStore["Service"]["release"] = (held, keepFor) =>
    Effect.suspend((): Effect.Effect<LockStore.Confirmation, LockError.LockStoreError> => {
      const entry = leaseOf(held)
      if (entry === null) return Effect.succeed("NotHeld")
      const releasedBy = entry?.releasedBy ?? new Set<ballots.Voter>()
      const votes = new Map<ballots.Voter, ballots.Vote>()
      let denied = 0
      return letGo(
        electorate,
        held,
        keepFor,
        entry?.lease,
        votes,
        (voter, answer) => {
          if (answer[0] === 1) releasedBy.add(voter)
          else if (!releasedBy.has(voter)) denied++
        },
        (pending) => releasedBy.size >= quorum || denied > voters.length - quorum || releasedBy.size + pending < quorum
      ).pipe(
        Effect.andThen(
          Effect.suspend((): Effect.Effect<LockStore.Confirmation, LockError.LockStoreError> => {
            if (releasedBy.size < quorum && denied <= voters.length - quorum) {
              return Effect.fail(undecided("release", votes))
            }
            if (entry !== undefined) forget(entry)
            return Effect.succeed(releasedBy.size >= quorum ? "Done" : "NotHeld")
          })
        )
      )
    })

  const abandon: LockStore.LockStore["Service"]["abandon"] = (key, holderId) =>
    Effect.suspend(() => {
      const found = entries.get(holderId)
      const entry = found?.key === key ? found : undefined
      const place = turns.placeOf(key, holderId)
      if (entry !== undefined) forget(entry)
      const holders: Array<ballots.Holder> = []
      let unanswered = voters.length
      // Never fails: what cannot be told a voter now is told it as soon as it answers, or ends with the ttl.
      return Effect.as(
        letGo(
          electorate,
          { key, holderId, token: "*" },
          0,
          entry?.lease,
          new Map(),
          (_voter, answer) => {
            unanswered--
            const holder = ballots.holderOf(answer[1])
            if (holder !== undefined) holders.push(holder)
          },
          () => false
        ),
        undefined
      ).pipe(Effect.map(() => ({ holders: inspection.holdersIn(quorum, holders, unanswered), ...place })))
    })

  const waitersOf = (key: string) =>
    turns.waiters(key).map(({ holderId, metadata, since }): LockStore.WaiterInfo => ({
      holderId,
      permits: 1,
      waitedFor: LockStore.elapsedUnsafe(since, clock),
      metadata
    }))

  /** Of other clients' waiters a voter knows only where they are told of releases; of them nobody tells a watched holder. */
  const watch: LockStore.LockStore["Service"]["watch"] = (held) =>
    Effect.suspend(() => {
      const entry = leaseOf(held)
      if (entry === null || entry?.lease?.isOver === true) return Effect.succeed<LockStore.Watch>({ _tag: "NotHeld" })
      return Effect.map(
        inspection.look(electorate, settings.name, "watch", held.key),
        ({ holders, remote, unanswered }): LockStore.Watch => {
          const votes = holders.filter(({ holderId }) => holderId === held.holderId)
          if (votes.length + unanswered < quorum) return { _tag: "NotHeld" }
          if (entry !== undefined) watched.add(entry)
          return { _tag: "Done", isWanted: turns.count(held.key) + remote.length > 0 }
        }
      )
    })

  /** What nobody abandoned, though its lease has run out or its wait was given up. */
  const sweep = Effect.sync(() => {
    const time = monotonic()
    for (const entry of Array.from(entries.values())) {
      if (entry.asking !== undefined) continue
      const until = entry.lease === undefined ? entry.turnUntil + settings.outageTolerance : entry.lease.liveUntil
      if (time > until + retention) forget(entry)
    }
  })
  yield* Effect.forkScoped(Effect.forever(Effect.andThen(Effect.sleep(retention), sweep)))

  const released = (voter: ballots.Voter, key: string, nonce: string): void => {
    const entry = turns.turn(key)
    if (entry === undefined) return
    if (entry.heardFrom?.nonce !== nonce) entry.heardFrom = { nonce, voters: new Set() }
    entry.heardFrom.voters.add(voter)
    // A majority is free only when a majority has said so.
    if (entry.heardFrom.voters.size === quorum) Deferred.doneUnsafe(entry.wake, Effect.void)
  }

  /** Take-overs fail, too, and the next renewal heals what they took: that of the moment tells whether this one did. */
  const evicted = (holderId: string): void => {
    const entry = entries.get(holderId)
    if (entry?.lease === undefined) return
    entry.evictions++
    tell({ _tag: "InDoubt", key: entry.key })
  }

  return {
    service: {
      name: settings.name,
      driftFactor: electorate.settings.driftFactor,
      identity: { host: Os.hostname(), pid: String(process.pid) },
      attempt,
      renew,
      release,
      abandon,
      takeover,
      transfer,
      adopt,
      watch,
      onNews,
      inspect: (key) => inspection.inspect(electorate, settings.name, key, () => waitersOf(key)),
      list: (prefix) => inspection.list(electorate, settings.name, prefix)
    },
    receive: (from, message) => {
      const eviction = /^! (\d+) /.exec(message)
      const start = eviction === null ? message.indexOf(" ") + 1 : eviction[0].length
      const end = start + Number(eviction?.[1] ?? 0)
      const [subject, key] = eviction === null
        ? [message.slice(0, start - 1), message.slice(start)]
        : [message.slice(start, end), message.slice(end)]
      // A borrowed client may put a prefix of its own before the voter's.
      let [first, name, at] = [undefined as ballots.Voter | undefined, "", Infinity]
      for (const voter of from) {
        const prefix = voter.keyOf("")
        const found = key.indexOf(prefix)
        if (found === -1 || found >= at) continue
        first = voter
        at = found
        name = key.slice(found + prefix.length)
      }
      if (first === undefined) return
      if (eviction === null) released(first, name, subject)
      else evicted(subject)
    },
    doubt: (key) => tell({ _tag: "InDoubt", key })
  }
})

const full = (answer: LockStore.Attempt): LockStore.Attempt =>
  answer._tag === "Refused" ? { _tag: "QueueFull", standing: answer.standing } : answer

type Lost = Extract<ballots.Verdict, { readonly _tag: "Lost" }>

// Who is told of a release and does not listen any more is struck off then.
const listenFor = 60_000

type TransferReply = readonly [1, left: string] | readonly [0]
