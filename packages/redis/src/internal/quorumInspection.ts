/** What a quorum knows, asked without voting; and what it has to say when it could not decide. */
import * as LockError from "@effect-lock/core/LockError"
import type * as LockStore from "@effect-lock/core/LockStore"
import * as Effect from "effect/Effect"
import * as ballots from "./quorumBallot.ts"
import * as scripts from "./quorumScripts.ts"

/** @internal */
export const failure = (
  store: string,
  operation: string,
  reason: LockError.LockStoreError["reason"],
  detail: string,
  limit?: readonly [name: string, value: number]
): LockError.LockStoreError =>
  new LockError.LockStoreError({
    store,
    operation,
    reason,
    detail,
    ...(limit === undefined ? undefined : { limitName: limit[0], limit: limit[1] })
  })

/**
 * No majority has decided either way: what each voter had to say.
 *
 * @internal
 */
export const undecided = (
  electorate: ballots.Electorate,
  store: string,
  operation: string,
  votes: ReadonlyMap<ballots.Voter, ballots.Vote>
): LockError.LockStoreError => {
  const { settings: { voterTimeout }, voters } = electorate
  const failed = voters.flatMap((voter) => {
    const vote = votes.get(voter) ?? voter.trouble
    return vote?._tag === "NoAnswer" ? [vote.reason] : vote?._tag === "Withheld" ? ["withheld"] : []
  })
  const only = (what: string) => failed.length > 0 && failed.every((it) => it === what)
  const reason = only("refused") ? "Refused" : only("timeout") ? "Timeout" : "Unavailable"
  const detail = `no majority of ${voters.length} voters: ${ballots.describe(electorate, votes)}`
  return failure(store, operation, reason, detail, reason === "Timeout" ? ["voterTimeout", voterTimeout] : undefined)
}

/**
 * Who has a majority, as far as is known; else everybody who has votes. `unknown` voters may be anybody's.
 *
 * @internal
 */
export const holdersIn = (
  quorum: number,
  votes: ReadonlyArray<ballots.Holder>,
  unknown: number,
  onlyMajority = false
): ReadonlyArray<LockError.HolderInfo> => {
  const groups = ballots.tally(votes)
  const winners = groups.filter(({ length }) => length + unknown >= quorum)
  const shown = winners.length > 0 ? winners.slice(0, 1) : onlyMajority ? [] : groups
  return shown.map((group) => {
    const claims = ballots.tally(group.map((vote) => ({ ...vote, nonce: String(vote.claim) })))
    const left = group.map(({ timeLeft }) => timeLeft).toSorted((a, b) => b - a)
    return {
      holderId: group[0]!.holderId,
      token: claims[0]![0]!.claim,
      permits: 1,
      heldFor: Math.max(...group.map(({ heldFor }) => heldFor)),
      timeLeft: left[Math.min(quorum, left.length) - 1]!,
      metadata: JSON.parse(group[0]!.metadata) as Record<string, string>
    }
  })
}

/**
 * What the voters that answer know of a key: votes, and waiters of other clients.
 *
 * @internal
 */
export const look = (electorate: ballots.Electorate, store: string, operation: string, key: string) =>
  Effect.suspend(() => {
    const { voters } = electorate
    const votes = new Map<ballots.Voter, ballots.Vote>()
    const holders: Array<ballots.Holder> = []
    const remote: Array<LockStore.WaiterInfo> = []
    let answered = 0
    return ballots.poll(
      electorate,
      ballots.reachable(electorate, votes),
      (voter) =>
        Effect.map(ballots.answerOf(voter.run(scripts.inspect, [voter.keyOf(key)], [])), (answer) => {
          if (ballots.isNoAnswer(answer)) {
            votes.set(voter, answer)
            return
          }
          answered++
          const [by, waiting] = answer as InspectReply
          const holder = ballots.holderOf(by)
          if (holder !== undefined) holders.push(holder)
          for (const [client, holderId, waitedFor, metadata] of waiting) {
            if (client === electorate.clientId) continue
            remote.push({ holderId, permits: 1, waitedFor: Number(waitedFor), metadata: JSON.parse(metadata) })
          }
        }),
      () => false,
      votes
    ).pipe(
      Effect.flatMap(() => {
        if (answered < ballots.quorumOf(electorate)) {
          return Effect.fail(undecided(electorate, store, operation, votes))
        }
        return Effect.succeed({ holders, remote, unanswered: voters.length - answered })
      })
    )
  })

/**
 * Who has a majority and who waits, of this client and of others.
 *
 * @internal
 */
export const inspect = (
  electorate: ballots.Electorate,
  store: string,
  key: string,
  local: () => ReadonlyArray<LockStore.WaiterInfo>
): Effect.Effect<LockStore.KeyState, LockError.LockStoreError> =>
  Effect.map(look(electorate, store, "inspect", key), ({ holders, remote, unanswered }) => {
    const quorum = ballots.quorumOf(electorate)
    const waiters = [...local()]
    const counts = new Map<string, number>()
    for (const waiter of remote) {
      const count = (counts.get(waiter.holderId) ?? 0) + 1
      counts.set(waiter.holderId, count)
      if (count === Math.max(1, quorum - unanswered)) waiters.push(waiter)
    }
    const sure = holdersIn(quorum, holders, unanswered, true)
    return {
      key,
      ...sure.length + waiters.length > 0 ? { limit: 1 } : undefined,
      holders: sure,
      waiters: waiters.toSorted((a, b) => b.waitedFor - a.waitedFor)
    }
  })

/**
 * The keys of all voters that answer, which have to be a majority.
 *
 * @internal
 */
export const list = (
  electorate: ballots.Electorate,
  store: string,
  prefix: string
): Effect.Effect<ReadonlyArray<string>, LockError.LockStoreError> =>
  Effect.suspend(() => {
    const votes = new Map<ballots.Voter, ballots.Vote>()
    const keys = new Set<string>()
    let answered = 0
    const listOne = (voter: ballots.Voter) =>
      Effect.map(ballots.answerOf(voter.list(voter.keyOf(prefix))), (answer) => {
        if (ballots.isNoAnswer(answer)) {
          votes.set(voter, answer)
          return
        }
        answered++
        const { length } = voter.keyOf("")
        for (const name of answer as ReadonlyArray<string>) keys.add(name.slice(length))
      })
    return Effect.forEach(ballots.reachable(electorate, votes), listOne, {
      concurrency: "unbounded",
      discard: true
    }).pipe(
      Effect.flatMap(() =>
        answered < ballots.quorumOf(electorate)
          ? Effect.fail(undecided(electorate, store, "list", votes))
          : Effect.succeed(Array.from(keys))
      )
    )
  })

type InspectReply = readonly [
  by: ballots.HolderReply,
  waiting: ReadonlyArray<readonly [client: string, holderId: string, waitedFor: string, metadata: string]>
]
