/**
 * The quorum protocol: fencing tokens and leases by the votes of a majority, without consensus and without trusting any
 * clock for the order of tokens.
 *
 * A ballot asks every voter for its vote on a lock, once, with a nonce of its own. Let R be the grants that were counted, at
 * least a majority, and the token t the greatest counter in R. It is safe to use t when a majority of the voters *in R*
 * confirms it: those that gave exactly t, and those whose counter was raised to t while they still said `nonce c`.
 *
 * Why tokens are unique and ordered: let W be the majority that confirmed a. Two ballots that end well share a voter j of
 * W(a) and W(b). `nonce c` occurs once at j, so j had given its vote to nobody else between granting and confirming it, and
 * the two times at j do not overlap. If a's came first, the counter of j was at least t(a) before b was granted, so
 * t(b) >= c(b, j) > t(a). Votes may run out at any moment without harm to this. What each rule is for was found by model
 * checking, which shows two holders of one token where it is missing:
 *
 * - write-back where voters disagree: else a majority that shares no voter with the greatest counter repeats it
 * - write-back only where the vote still is the one that was given: else it confirms nothing
 * - no write-back counted at a voter whose grant is not in R: its counter may exceed t, and the next ballot's may not
 * - the counter beside the nonce: else a command that was executed twice makes two votes look like one
 * - tokens never below the clock, and no vote of a voter that lost its memory until every lease has run out: else it repeats
 *   its counters
 *
 * @internal
 */
import type * as LockError from "@effect-lock/core/LockError"
import * as LockStore from "@effect-lock/core/LockStore"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberSet from "effect/FiberSet"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import type { RedisClient } from "../RedisClient.ts"
import * as scripts from "./quorumScripts.ts"

/**
 * One of the places that are asked.
 *
 * @internal
 */
export interface Voter {
  readonly name: string
  readonly keyOf: (key: string) => string
  /** Where this voter keeps which process may vote since when; undefined where `run` sees to that. */
  readonly mark: string | undefined
  readonly run: RedisClient["run"]
  /** The names of this voter's keys that begin so. */
  readonly list: (begin: string) => Effect.Effect<ReadonlyArray<string>, LockError.LockStoreError>
  /** Set while it does not answer: nobody waits for it then, and nothing piles up before it. */
  readonly trouble: NoAnswer | undefined
  readonly recovered: Effect.Effect<void>
  readonly suspect: (trouble: NoAnswer) => void
}

/** @internal */
export interface NoAnswer {
  readonly _tag: "NoAnswer"
  readonly reason: "timeout" | "unreachable" | "refused"
  readonly detail: string
}

/**
 * A vote as the voter tells of it; `claim` is the token as far as this voter knows.
 *
 * @internal
 */
export interface Holder {
  readonly nonce: string
  readonly holderId: string
  readonly claim: number
  readonly heldFor: number
  readonly timeLeft: number
  readonly metadata: string
}

/** @internal */
export type Vote =
  | { readonly _tag: "Granted"; readonly counter: string }
  | { readonly _tag: "Held"; readonly by: Holder }
  | { readonly _tag: "Withheld"; readonly rest: number }
  /** Asked for what a ticket has set aside: there is no such thing, for the reason given if it is known. */
  | { readonly _tag: "Spent"; readonly reason: string; readonly by: Holder | undefined }
  | NoAnswer

/** @internal */
export interface Settings {
  /** How long a voter is waited for. */
  readonly voterTimeout: number
  readonly driftFactor: number
  readonly maxTtl: number
  /** The longest ttl and the slack for clocks: how long a fence outlives a vote. */
  readonly retention: number
  /** How long a voter that may have forgotten votes gives none; 0: not at all. */
  readonly quarantine: number
  /** What the inbox channels of waiting clients begin with; empty for none. */
  readonly inbox: string
}

/**
 * What tests may leave out, to show that they notice. Not for use.
 *
 * @internal
 */
export interface Rules {
  readonly writeBack: boolean
}

/**
 * All that the ballots of one store share.
 *
 * @internal
 */
export interface Electorate {
  readonly clientId: string
  readonly voters: ReadonlyArray<Voter>
  readonly settings: Settings
  readonly rules: Rules
  readonly clock: Clock.Clock
  /** What goes on after an answer was given: late replies and what follows from them. */
  readonly background: FiberSet.FiberSet
  readonly runInBackground: (effect: Effect.Effect<void>) => void
  rounds: number
  /** The greatest counter seen, told to every voter so that they agree again. */
  floor: number
}

/**
 * An electorate whose background work ends with the scope: what is under way then has `voterTimeout` left.
 *
 * @internal
 */
export const makeElectorate = Effect.fnUntraced(function*(
  options: Pick<Electorate, "clientId" | "voters" | "settings">,
  rules: Rules = { writeBack: true }
): Effect.fn.Return<Electorate, never, Scope.Scope> {
  const clock = yield* Clock.clockWith(Effect.succeed)
  const background = yield* FiberSet.make()
  yield* Effect.addFinalizer(() => Effect.timeoutOption(FiberSet.awaitEmpty(background), options.settings.voterTimeout))
  const runInBackground = yield* FiberSet.runtime(background)()
  return { ...options, rules, clock, background, runInBackground, rounds: 0, floor: 0 }
})

/** @internal */
export const quorumOf = ({ voters }: Electorate): number => Math.floor(voters.length / 2) + 1

/** @internal */
export interface Wish {
  readonly key: string
  readonly holderId: string
  readonly ttl: number
  readonly floor: number
  readonly metadata: string
  /** For how long the client wants to hear of a release; 0: not at all. */
  readonly listenFor: number
  /** When the client began to wait, on its own clock: whom a voter tells first. */
  readonly since: number
  /** Free votes only; or also those of others; or only those that a ticket has set aside. */
  readonly mode: "ask" | "take" | "adopt"
  readonly ticket: LockStore.Held | undefined
}

/**
 * One request for the votes of all, and the lease it may have become.
 *
 * @internal
 */
export class Ballot {
  readonly wish: Wish
  readonly round: number
  readonly nonce: string
  readonly sentAt: LockStore.Instant
  readonly votes = new Map<Voter, Vote>()
  /** Where a vote may be: to be taken back there when this is over. */
  readonly mayHold = new Set<Voter>()
  /** Where the request for a vote is under way. */
  readonly asking = new Set<Voter>()
  /** The voters whose grants made the token. */
  counted: ReadonlySet<Voter> = new Set()
  /** Set once it is known; a lease only if `isOver` is not set. */
  token = 0
  wasWon = false
  isOver = false
  /** From this moment on the local monotonic clock no voter keeps a vote by itself. */
  liveUntil = 0

  constructor(electorate: Electorate, wish: Wish) {
    this.wish = wish
    this.round = ++electorate.rounds
    this.nonce = `${electorate.clientId}-${this.round}`
    this.sentAt = LockStore.nowUnsafe(electorate.clock)
    this.reach(this.sentAt, wish.ttl, electorate)
  }

  reach(from: LockStore.Instant, ttl: number, { settings }: Electorate): void {
    this.liveUntil = Math.max(this.liveUntil, from.monotonic + ttl * (1 + settings.driftFactor) + settings.voterTimeout)
  }
}

/** @internal */
export type Verdict =
  | { readonly _tag: "Won"; readonly ballot: Ballot }
  | {
    readonly _tag: "Lost"
    readonly ballot: Ballot
    /**
     * `taken`: somebody else has a lease. `split`: perhaps nobody has, others are asking, too. `unavailable`: too few voters
     * answered. `slow`: won, but nothing was left of the ttl.
     */
    readonly reason: "taken" | "split" | "unavailable" | "slow"
  }

/**
 * Asks all at once and answers as soon as the outcome is certain. Whatever the outcome, and wherever it is interrupted, no
 * vote of a ballot that was not won stays with any voter.
 *
 * @internal
 */
export const cast = (electorate: Electorate, wish: Wish): Effect.Effect<Verdict> =>
  Effect.suspend(() => {
    const ballot = new Ballot(electorate, wish)
    const quorum = quorumOf(electorate)
    const isDecided = (pending: number): boolean => {
      const granted = count(ballot, "Granted")
      const answered = granted + count(ballot, "Held") + count(ballot, "Spent")
      // Where too few answer, the outcome of each is worth the wait.
      return granted >= quorum || (granted + pending < quorum && answered >= quorum)
    }
    return poll(
      electorate,
      reachable(electorate, ballot.votes),
      (voter) => askForVote(electorate, ballot, voter),
      isDecided,
      ballot.votes
    ).pipe(
      Effect.andThen(Effect.suspend(() => decide(electorate, ballot))),
      Effect.onExit((exit) => {
        ballot.wasWon = Exit.isSuccess(exit) && exit.value._tag === "Won"
        return ballot.wasWon ? Effect.void : end(electorate, ballot)
      })
    )
  })

/**
 * Asks voters until the outcome is certain, or no longer than `voterTimeout`. What is asked is never interrupted: replies that
 * come later are handled when they come. Who did not answer in time is written down in `votes`.
 *
 * @internal
 */
export const poll = (
  electorate: Electorate,
  voters: ReadonlyArray<Voter>,
  ask: (voter: Voter) => Effect.Effect<void>,
  isDecided: (pending: number) => boolean,
  votes: Map<Voter, Vote>
): Effect.Effect<void> =>
  Effect.suspend(() => {
    const pending = new Set(voters)
    const over = Deferred.makeUnsafe<void>()
    const close = () => Deferred.doneUnsafe(over, Effect.void)
    const settle = (voter: Voter) =>
      Effect.sync(() => {
        pending.delete(voter)
        if (pending.size === 0 || isDecided(pending.size)) close()
      })
    const askOne = (voter: Voter) =>
      Effect.suspend(() =>
        voter.trouble === undefined ? ask(voter) : Effect.andThen(
          Effect.raceFirst(Deferred.await(over), voter.recovered),
          // Nobody wants to know any more: a voter that is down must not find a pile of questions when it is back.
          Effect.suspend(() => Deferred.isDoneUnsafe(over) ? Effect.void : ask(voter))
        )
      )
    const { voterTimeout } = electorate.settings
    const answered = Effect.timeoutOption(Deferred.await(over), voterTimeout).pipe(
      // After a stall of this process the timer comes before the replies that have been there all the time.
      Effect.flatMap((done) => Option.isSome(done) ? Effect.void : Effect.timeoutOption(Deferred.await(over), 1)),
      Effect.tap(() =>
        Effect.sync(() => {
          if (Deferred.isDoneUnsafe(over)) return
          const trouble = unanswered(electorate)
          for (const voter of pending) {
            voter.suspect(trouble)
            if (!votes.has(voter)) votes.set(voter, voter.trouble ?? trouble)
          }
        })
      )
    )
    if (pending.size === 0 || isDecided(pending.size)) return Effect.void
    // All are asked or none; whoever waits may be interrupted, though.
    return Effect.uninterruptibleMask((restore) =>
      Random.shuffle(voters).pipe(
        Effect.flatMap((shuffled) =>
          Effect.forEach(
            shuffled,
            (voter) => FiberSet.run(electorate.background, Effect.andThen(askOne(voter), settle(voter))),
            { discard: true }
          )
        ),
        Effect.andThen(restore(answered)),
        Effect.ensuring(Effect.sync(close))
      )
    )
  })

/**
 * Voters that do not answer are not asked as long as the others are a majority; else all are, should one come back.
 *
 * @internal
 */
export const reachable = (
  electorate: Electorate,
  votes: Map<Voter, Vote>
): ReadonlyArray<Voter> => {
  const up = electorate.voters.filter(({ trouble }) => trouble === undefined)
  if (up.length < quorumOf(electorate)) return electorate.voters
  for (const voter of electorate.voters) {
    if (voter.trouble !== undefined) votes.set(voter, voter.trouble)
  }
  return up
}

const askForVote = (electorate: Electorate, ballot: Ballot, voter: Voter): Effect.Effect<void> =>
  Effect.suspend(() => {
    // Too late to be of use, and it would have to be taken back.
    if (ballot.isOver) return Effect.void
    const { settings } = electorate
    const { floor, holderId, key, listenFor, metadata, mode, since, ticket, ttl } = ballot.wish
    ballot.mayHold.add(voter)
    ballot.asking.add(voter)
    const keys = [voter.keyOf(key)]
    if (voter.mark !== undefined) keys.push(voter.mark)
    const args = [
      electorate.clientId,
      ballot.round,
      holderId,
      ttl,
      Math.max(floor, electorate.floor),
      metadata,
      settings.retention,
      settings.quarantine,
      listenFor,
      since,
      mode,
      ticket?.holderId ?? "",
      ticket?.token ?? "",
      settings.inbox
    ]
    // Whoever waited for the answer has given up, and the vote may have been taken back before it was given.
    const onUnanswered = () => (reply: unknown) => {
      if (ballot.isOver && Array.isArray(reply) && reply[0] === 1) {
        electorate.runInBackground(takeBackAgain(electorate, ballot, voter))
      }
    }
    return Effect.flatMap(
      answerOf(voter.run(scripts.acquire, keys, args, onUnanswered)),
      (answer) => {
        const vote = isNoAnswer(answer) ? answer : voteOf(electorate, answer as VoteReply)
        ballot.votes.set(voter, vote)
        ballot.asking.delete(voter)
        if (vote._tag !== "Granted") {
          if (vote._tag !== "NoAnswer" || vote.reason === "refused") ballot.mayHold.delete(voter)
          return Effect.void
        }
        if (ballot.isOver) return takeBackAgain(electorate, ballot, voter)
        return ballot.token > 0 && !ballot.counted.has(voter)
          ? spread(electorate, ballot, voter, vote.counter)
          : Effect.void
      }
    )
  })

const decide = (electorate: Electorate, ballot: Ballot): Effect.Effect<Verdict> => {
  const { rules, settings } = electorate
  const quorum = quorumOf(electorate)
  const granted = new Map<Voter, string>()
  for (const [voter, vote] of ballot.votes) if (vote._tag === "Granted") granted.set(voter, vote.counter)
  if (granted.size < quorum) {
    const holders = holdersOf(ballot.votes)
    const reason = granted.size + holders.length + count(ballot, "Spent") < quorum
      ? "unavailable"
      : tally(holders).some(({ length }) => length >= quorum)
          // Who has been voted for longer ago has a lease, as far as can be known.
          || !holders.some((holder) => isYoung(electorate, holder))
      ? "taken"
      : "split"
    return Effect.succeed({ _tag: "Lost", ballot, reason })
  }
  // R is what has been granted by now: votes that come later are kept, but prove nothing about this token.
  ballot.counted = new Set(granted.keys())
  const token = ballot.token = Math.max(...Array.from(granted.values(), Number))
  const confirmed = new Set<Voter>()
  for (const [voter, counter] of granted) if (Number(counter) === token) confirmed.add(voter)
  const behind = Array.from(granted.keys()).filter((voter) => !confirmed.has(voter))
  const confirm = confirmed.size >= quorum || !rules.writeBack ? Effect.void : poll(
    electorate,
    behind,
    (voter) =>
      Effect.map(raise(ballot, voter, granted.get(voter)!), (reply) => {
        if (reply === 1) confirmed.add(voter)
      }),
    (pending) => confirmed.size >= quorum || confirmed.size + pending < quorum,
    new Map()
  )
  return Effect.map(confirm, (): Verdict => {
    if (rules.writeBack && confirmed.size < quorum) return { _tag: "Lost", ballot, reason: "split" }
    const elapsed = LockStore.elapsedUnsafe(ballot.sentAt, electorate.clock)
    return ballot.wish.ttl * (1 - settings.driftFactor) - elapsed > 0
      ? { _tag: "Won", ballot }
      : { _tag: "Lost", ballot, reason: "slow" }
  })
}

const raise = (ballot: Ballot, voter: Voter, counter: string): Effect.Effect<unknown> =>
  answerOf(voter.run(scripts.writeBack, [voter.keyOf(ballot.wish.key)], [ballot.nonce, counter, ballot.token]))

/** A vote too late to be counted: it learns the token, so that all voters tell the same, and confirms nothing. */
const spread = (electorate: Electorate, ballot: Ballot, voter: Voter, counter: string): Effect.Effect<void> =>
  Number(counter) === ballot.token
    ? Effect.void
    : Effect.asVoid(FiberSet.run(electorate.background, raise(ballot, voter, counter)))

/**
 * Takes every vote back, in the background: also where none was reported, because the report may have been lost, and where
 * the request has not been answered yet, because it may still be executed.
 *
 * @internal
 */
export const end = (electorate: Electorate, ballot: Ballot): Effect.Effect<void> =>
  Effect.suspend(() => {
    ballot.isOver = true
    return Effect.forEach(
      Array.from(ballot.mayHold),
      (voter) => FiberSet.run(electorate.background, takeBack(electorate, ballot, voter)),
      { discard: true }
    )
  })

/**
 * Takes one vote back, sooner or later: until the voter has confirmed it, or keeps no vote by itself any more.
 *
 * @internal
 */
export const takeBack = (electorate: Electorate, ballot: Ballot, voter: Voter): Effect.Effect<void> =>
  Effect.gen(function*() {
    const { clock, settings } = electorate
    // Right behind a request that is still under way, on the same connection, it undoes it in order.
    let wait = voter.trouble !== undefined && !ballot.asking.has(voter)
    while (ballot.mayHold.has(voter)) {
      const left = ballot.liveUntil - LockStore.nowUnsafe(clock).monotonic
      if (left <= 0) break
      if (wait) {
        yield* Effect.sleep(Math.min(left, settings.voterTimeout))
        yield* Effect.timeoutOption(voter.recovered, Math.max(1, left))
      }
      const { key, ticket } = ballot.wish
      const answer = yield* answerOf(
        voter.run(scripts.release, [voter.keyOf(key)], [
          ballot.nonce,
          "",
          "",
          Math.max(ballot.token, electorate.floor),
          0,
          "",
          electorate.clientId,
          settings.retention,
          // An adoption that failed can be tried again.
          ballot.wasWon ? "" : ticket?.holderId ?? "",
          ticket?.token ?? ""
        ])
      )
      if (!isNoAnswer(answer) || answer.reason === "refused") break
      wait = true
    }
    ballot.mayHold.delete(voter)
  })

/** A vote that was given after it was taken back: a script that is not known is sent twice, and may be overtaken. */
const takeBackAgain = (electorate: Electorate, ballot: Ballot, voter: Voter): Effect.Effect<void> =>
  Effect.suspend(() => {
    ballot.mayHold.add(voter)
    return takeBack(electorate, ballot, voter)
  })

/**
 * Votes again where a voter has none, for a lease of which a majority has been confirmed. Never counted in the same round.
 *
 * @internal
 */
export const heal = (electorate: Electorate, ballot: Ballot, voter: Voter, ttl: number): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (ballot.isOver) return Effect.void
    const { clock, settings } = electorate
    const { holderId, key, metadata } = ballot.wish
    const age = Math.floor(Math.max(0, LockStore.elapsedUnsafe(ballot.sentAt, clock)))
    ballot.mayHold.add(voter)
    ballot.reach(LockStore.nowUnsafe(clock), ttl, electorate)
    return Effect.flatMap(
      answerOf(
        voter.run(
          scripts.heal,
          voter.mark === undefined ? [voter.keyOf(key)] : [voter.keyOf(key), voter.mark],
          [
            ballot.nonce,
            holderId,
            ballot.token,
            ttl,
            age,
            metadata,
            settings.retention,
            settings.quarantine
          ]
        )
      ),
      (answer) => {
        if (answer === 0 || answer === 2) ballot.mayHold.delete(voter)
        return ballot.isOver && answer === 1 ? takeBackAgain(electorate, ballot, voter) : Effect.void
      }
    )
  })

/**
 * Runs a command whose failure is an answer, too.
 *
 * @internal
 */
export const answerOf = (
  command: Effect.Effect<unknown, LockError.LockStoreError>
): Effect.Effect<unknown> => Effect.catch(command, (error) => Effect.succeed(noAnswerOf(error)))

const noAnswerOf = ({ detail, limit, reason }: LockError.LockStoreError): NoAnswer => {
  switch (reason) {
    case "Timeout":
      return { _tag: "NoAnswer", reason: "timeout", detail: `no answer within ${limit} ms` }
    case "Unavailable":
      return { _tag: "NoAnswer", reason: "unreachable", detail: detail ?? "no connection" }
    case "Refused":
      return { _tag: "NoAnswer", reason: "refused", detail: detail ?? "no reason given" }
  }
}

/** @internal */
export const isNoAnswer = (answer: unknown): answer is NoAnswer =>
  typeof answer === "object" && answer !== null && "_tag" in answer && answer._tag === "NoAnswer"

/** @internal */
export type HolderReply =
  | readonly []
  | readonly [nonce: string, holderId: string, claim: string, heldFor: string, left: string, metadata: string]

type VoteReply =
  | readonly [1, counter: string]
  | readonly [0, counter: string, by: HolderReply]
  | readonly [2, rest: string]
  | readonly [3, counter: string, reason: string, by: HolderReply]

const voteOf = (electorate: Electorate, reply: VoteReply): Vote => {
  if (reply[0] === 2) return { _tag: "Withheld", rest: Number(reply[1]) }
  electorate.floor = Math.max(electorate.floor, Number(reply[1]))
  if (reply[0] === 3) return { _tag: "Spent", reason: reply[2], by: holderOf(reply[3]) }
  return reply[0] === 1 ? { _tag: "Granted", counter: reply[1] } : { _tag: "Held", by: holderOf(reply[2])! }
}

/** @internal */
export const holderOf = (reply: HolderReply): Holder | undefined =>
  reply.length === 0 ? undefined : {
    nonce: reply[0],
    holderId: reply[1],
    claim: Number(reply[2]),
    heldFor: Number(reply[3]),
    timeLeft: Number(reply[4]),
    metadata: reply[5]
  }

const count = (ballot: Ballot, tag: Vote["_tag"]): number => {
  let n = 0
  for (const vote of ballot.votes.values()) if (vote._tag === tag) n++
  return n
}

/**
 * Whether a vote may be that of a ballot under way: two polls are the most it takes.
 *
 * @internal
 */
export const isYoung = ({ settings }: Electorate, { heldFor }: Holder): boolean => heldFor <= 2 * settings.voterTimeout

/** @internal */
export const holdersOf = (votes: ReadonlyMap<Voter, Vote>): ReadonlyArray<Holder> => {
  const holders: Array<Holder> = []
  for (const vote of votes.values()) if (vote._tag === "Held") holders.push(vote.by)
  return holders
}

/**
 * The votes of each, most first.
 *
 * @internal
 */
export const tally = (holders: ReadonlyArray<Holder>): ReadonlyArray<ReadonlyArray<Holder>> => {
  const groups = new Map<string, Array<Holder>>()
  for (const holder of holders) {
    const group = groups.get(`${holder.nonce} ${holder.holderId}`)
    if (group === undefined) groups.set(`${holder.nonce} ${holder.holderId}`, [holder])
    else group.push(holder)
  }
  return Array.from(groups.values()).toSorted((a, b) => b.length - a.length)
}

/**
 * What each voter had to say, for people.
 *
 * @internal
 */
export const describe = (electorate: Electorate, votes: ReadonlyMap<Voter, Vote>): string =>
  electorate.voters.map((voter) => {
    const vote = votes.get(voter) ?? voter.trouble
    switch (vote?._tag) {
      case undefined:
        return `${voter.name}: not waited for`
      case "Granted":
        return `${voter.name}: granted`
      case "Held":
        return `${voter.name}: held by ${vote.by.holderId}`
      case "Withheld":
        return `${voter.name}: quarantined for ${vote.rest} ms more, because it restarted and may have forgotten votes`
      case "Spent":
        return `${voter.name}: nothing set aside`
      case "NoAnswer":
        return `${voter.name}: ${vote.reason} (${vote.detail})`
    }
  }).join("; ")

const unanswered = ({ settings }: Electorate): NoAnswer => ({
  _tag: "NoAnswer",
  reason: "timeout",
  detail: `no answer within voterTimeout of ${settings.voterTimeout} ms`
})
