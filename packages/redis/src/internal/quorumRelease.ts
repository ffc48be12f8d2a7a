import * as Effect from "effect/Effect"
import * as ballots from "./quorumBallot.ts"
import * as scripts from "./quorumScripts.ts"

/**
 * Lets go everywhere; `onAnswer` hears what the voters say. Who does not wait for them any more changes nothing about that:
 * what was asked goes on in the background.
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
    // What is not confirmed is tried on in the background, for as long as a voter may keep the vote.
    const later = (voter: ballots.Voter): void => {
      if (lease !== undefined && keepFor === 0 && lease.mayHold.has(voter)) {
        electorate.runInBackground(ballots.takeBack(electorate, lease, voter))
      }
    }
    const tellOne = (voter: ballots.Voter) =>
      Effect.map(
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
            later(voter)
            return
          }
          lease?.mayHold.delete(voter)
          onAnswer(voter, answer as readonly [0 | 1, ballots.HolderReply])
        }
      )
    const untold = voters.filter((voter) => votes.has(voter) || voter.trouble !== undefined)
    for (const voter of untold) later(voter)
    return ballots.poll(electorate, asked, tellOne, isDecided, votes)
  })
