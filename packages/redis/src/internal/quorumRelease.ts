import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as ballots from "./quorumBallot.ts"
import * as scripts from "./quorumScripts.ts"

/**
 * Lets go everywhere; `onAnswer` hears what the voters say.
 *
 * @internal
 */
export const letGo = (
  electorate: ballots.Electorate,
  { holderId, key, token }: { readonly key: string; readonly holderId: string; readonly token: number | "*" },
  keepFor: number,
  lease: ballots.Ballot | undefined,
  votes: Map<ballots.Voter, ballots.Vote>,
  onAnswer: (voter: ballots.Voter, answer: readonly [0 | 1, ballots.HolderReply]) => void,
  isDecided: (pending: number) => boolean
): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { settings: { inbox, retention }, voters } = electorate
    if (lease !== undefined) lease.isOver = true
    const asked = ballots.reachable(electorate, votes)
    const later = (voter: ballots.Voter) =>
      lease !== undefined && keepFor === 0 && lease.mayHold.has(voter)
        ? settleLater(electorate, lease, voter)
        : Effect.void
    const tellOne = (voter: ballots.Voter) =>
      Effect.flatMap(
        ballots.answerOf(
          voter.run(scripts.release, [voter.keyOf(key)], [
            lease?.nonce ?? "",
            holderId,
            token,
            Math.max(electorate.floor, lease?.token ?? 0),
            keepFor,
            inbox,
            electorate.clientId,
            retention,
            "",
            ""
          ])
        ),
        (answer) => {
          if (ballots.isNoAnswer(answer)) {
            votes.set(voter, answer)
            return later(voter)
          }
          lease?.mayHold.delete(voter)
          onAnswer(voter, answer as readonly [0 | 1, ballots.HolderReply])
          return Effect.void
        }
      )
    const untold = voters.filter((voter) => votes.has(voter) || voter.trouble !== undefined)
    return Effect.forEach(untold, later, { discard: true }).pipe(
      Effect.andThen(ballots.poll(electorate, asked, tellOne, isDecided, votes)),
      Effect.uninterruptible
    )
  })

/** What is not confirmed is tried on in the background, for as long as a voter may keep the vote. */
const settleLater = (
  electorate: ballots.Electorate,
  lease: ballots.Ballot,
  voter: ballots.Voter
): Effect.Effect<void> => Effect.asVoid(FiberSet.run(electorate.background, ballots.takeBack(electorate, lease, voter)))
