/**
 * Exclusion by the votes of a majority: `cast` and `takeBack` of quorumBallot.ts, `renewLease` of quorumStore.ts, and the
 * scripts `acquire`, `extend`, `heal` and `release`. Here votes live for as long as they were given for, and commands are
 * executed whenever the network likes, in any order, or never. Tokens are the matter of `quorum.ts`.
 */
import type { Model, Step } from "./checker.ts"

export interface Variant {
  /** The holder that each ballot is cast for; the ballots of one holder are its rounds, one after the other. */
  readonly ballots: ReadonlyArray<number>
  readonly ttl: number
  /** How often leases are renewed. */
  readonly renewals: number
  /** How often a voter restarts with nothing in its memory, and for how long it does not vote then. */
  readonly restarts: number
  readonly quarantine: number
  readonly validFrom: "sending" | "decision"
  /** What a vote is taken back by, when a ballot is not won. */
  readonly takeBackBy: "nonce" | "holder"
  /** Whether a late ACQ of an earlier round takes the vote from a later one. */
  readonly earlierRoundsOvertake: boolean
  /** Whether EXT makes a vote where there is none. */
  readonly extendCreates: boolean
}

export const protocol: Variant = {
  ballots: [0, 1],
  ttl: 2,
  renewals: 1,
  restarts: 1,
  quarantine: 2,
  validFrom: "sending",
  takeBackBy: "nonce",
  earlierRoundsOvertake: false,
  extendCreates: false
}

const voters = [0, 1, 2] as const
const majority = 2
const nobody = -1

interface Voter {
  /** The ballot that has the vote, and until when. */
  readonly vote: number
  readonly expiry: number
  readonly votesFrom: number
}

/** A command to one voter: not sent, under way, or executed. */
type Command = "-" | "sent" | "done"

interface Ballot {
  readonly phase: "new" | "asking" | "inside" | "over"
  readonly sentAt: number
  readonly validUntil: number
  /** By voter. */
  readonly asked: ReadonlyArray<Command>
  readonly granted: ReadonlyArray<boolean>
  readonly takenBack: ReadonlyArray<Command>
  /** The renewal under way, or -1. */
  readonly renewedAt: number
  readonly extended: ReadonlyArray<"-" | "sent" | "done" | "denied">
  readonly healed: ReadonlyArray<Command>
}

interface State {
  readonly now: number
  readonly voters: ReadonlyArray<Voter>
  readonly ballots: ReadonlyArray<Ballot>
  readonly renewals: number
  readonly restarts: number
}

const all = <A>(value: A): ReadonlyArray<A> => voters.map(() => value)

export const model = (variant: Variant): Model<State> => {
  const { ttl } = variant
  const holderOf = (b: number): number => variant.ballots[b]!

  const steps = (state: State): ReadonlyArray<Step<State>> => {
    const { ballots, now } = state
    // Nobody is left to meet inside.
    if (new Set(variant.ballots.filter((_, b) => ballots[b]!.phase !== "over")).size < 2) return []
    const steps: Array<Step<State>> = [["time passes", { ...state, now: now + 1 }]]

    const at = (name: string, v: number, voter: Voter, b: number, ballot: Ballot): void => {
      steps.push([name, { ...state, voters: state.voters.with(v, voter), ballots: ballots.with(b, ballot) }])
    }
    const client = (name: string, b: number, ballot: Ballot): void => {
      steps.push([name, { ...state, ballots: ballots.with(b, ballot) }])
    }
    /** `end` of a ballot, or the release of a lease: sent to all, because all may have voted or may do so yet. */
    const end = (name: string, b: number, ballot: Ballot): void =>
      client(name, b, { ...ballot, phase: "over", renewedAt: nobody, takenBack: all("sent") })

    ballots.forEach((ballot, b) => {
      const earlier = ballots.findIndex((it, e) => e < b && holderOf(e) === holderOf(b) && it.phase !== "over")
      switch (ballot.phase) {
        case "new":
          if (earlier === -1) client(`cast ${b}`, b, { ...ballot, phase: "asking", sentAt: now, asked: all("sent") })
          break
        case "asking": {
          const from = variant.validFrom === "sending" ? ballot.sentAt : now
          if (ballot.granted.filter(Boolean).length >= majority && now < from + ttl) {
            client(`${b} enters`, b, { ...ballot, phase: "inside", validUntil: from + ttl })
          }
          end(`${b} is not won`, b, ballot)
          break
        }
        case "inside": {
          end(`${b} is released`, b, ballot)
          if (now >= ballot.validUntil) break
          if (state.renewals < variant.renewals && ballot.renewedAt === nobody) {
            const renewing: Ballot = { ...ballot, renewedAt: now, extended: all("sent") }
            const renewals = state.renewals + 1
            steps.push([`${b} renews`, { ...state, renewals, ballots: ballots.with(b, renewing) }])
          }
          if (ballot.renewedAt !== nobody && ballot.extended.filter((it) => it === "done").length >= majority) {
            const healed = ballot.extended.map((it, v): Command => it === "denied" ? "sent" : ballot.healed[v]!)
            const validUntil = Math.max(ballot.validUntil, ballot.renewedAt + ttl)
            client(`${b} is renewed`, b, { ...ballot, validUntil, renewedAt: nobody, healed })
          }
        }
      }

      for (const v of voters) {
        const voter = state.voters[v]!
        const isLive = voter.vote !== nobody && voter.expiry > now
        const mine: Voter = { ...voter, vote: b, expiry: now + ttl }
        const none: Voter = { ...voter, vote: nobody, expiry: 0 }

        if (ballot.asked[v] === "sent") {
          const asked = ballot.asked.with(v, "done")
          const isOwnRound = isLive && holderOf(voter.vote) === holderOf(b) &&
            (voter.vote < b || variant.earlierRoundsOvertake)
          const isGranted = isLive ? voter.vote === b || isOwnRound : now >= voter.votesFrom
          if (isGranted) {
            at(`ACQ ${b} at ${v}`, v, mine, b, { ...ballot, asked, granted: ballot.granted.with(v, true) })
          } else client(`ACQ ${b} at ${v} refused`, b, { ...ballot, asked })
        }
        if (ballot.takenBack[v] === "sent") {
          const isMine = isLive &&
            (variant.takeBackBy === "nonce" ? voter.vote === b : holderOf(voter.vote) === holderOf(b))
          at(`REL ${b} at ${v}`, v, isMine ? none : voter, b, { ...ballot, takenBack: ballot.takenBack.with(v, "done") })
        }
        if (ballot.extended[v] === "sent") {
          const isThere = (isLive && voter.vote === b) || (!isLive && variant.extendCreates)
          const extended = ballot.extended.with(v, isThere ? "done" : "denied")
          const longer = { ...voter, vote: b, expiry: Math.max(voter.expiry, now + ttl) }
          at(`EXT ${b} at ${v} ${isThere ? "done" : "denied"}`, v, isThere ? longer : voter, b, { ...ballot, extended })
          // It counts for the renewal that sent it, or for none.
          if (isThere && ballot.renewedAt !== nobody) at(`EXT ${b} at ${v}, reply lost`, v, longer, b, ballot)
        }
        if (ballot.healed[v] === "sent") {
          at(`HEAL ${b} at ${v}`, v, isLive ? voter : mine, b, { ...ballot, healed: ballot.healed.with(v, "done") })
        }
      }
    })

    if (state.restarts < variant.restarts) {
      for (const v of voters) {
        const empty = { vote: nobody, expiry: 0, votesFrom: now + variant.quarantine }
        steps.push([
          `${v} restarts empty`,
          { ...state, restarts: state.restarts + 1, voters: state.voters.with(v, empty) }
        ])
      }
    }
    return steps
  }

  return {
    initial: [{
      now: 0,
      voters: voters.map(() => ({ vote: nobody, expiry: 0, votesFrom: 0 })),
      ballots: variant.ballots.map(() => ({
        phase: "new",
        sentAt: 0,
        validUntil: 0,
        asked: all("-"),
        granted: all(false),
        takenBack: all("-"),
        renewedAt: nobody,
        extended: all("-"),
        healed: all("-")
      })),
      renewals: 0,
      restarts: 0
    }],
    steps,
    key: keyOf(ttl),
    invariants: {
      "one inside": ({ ballots, now }) =>
        ballots.filter(({ phase, validUntil }) => phase === "inside" && now < validUntil).length <= 1
    }
  }
}

/** Only how far off a moment is counts, and voters are interchangeable. */
const keyOf = (ttl: number) => ({ ballots, now, renewals, restarts, voters }: State): string => {
  const ahead = (moment: number) => Math.max(0, moment - now)
  const ago = (moment: number) => Math.min(ttl, now - moment)
  const columns = voters.map(({ expiry, vote, votesFrom }, v) => {
    let column = expiry > now ? `${vote}${ahead(expiry)}` : "-"
    column += ahead(votesFrom)
    for (const { asked, extended, granted, healed, phase, takenBack } of ballots) {
      column += `${asked[v]![0]}${phase === "asking" && granted[v] ? 1 : 0}${takenBack[v]![0]}`
      column += phase === "inside" || extended[v] === "sent" ? extended[v]!.slice(0, 2) : "-"
      column += healed[v] === "sent" ? "h" : ""
    }
    return column
  })
  const rest = ballots.map(({ phase, renewedAt, sentAt, validUntil }) => {
    switch (phase) {
      case "asking":
        return `a${ago(sentAt)}`
      case "inside":
        return `i${ahead(validUntil)}${renewedAt === nobody ? "-" : ago(renewedAt)}`
      default:
        return phase[0]
    }
  })
  return `${columns.toSorted().join(" ")}|${rest.join(" ")}|${renewals}${restarts}`
}
