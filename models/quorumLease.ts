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
  /** Whether a late `acquire` of an earlier round takes the vote from a later one. */
  readonly earlierRoundsOvertake: boolean
  /** Whether `extend` makes a vote where there is none. */
  readonly extendCreates: boolean
  /** Whether a voter that gives no votes yet is healed. */
  readonly healsInQuarantine: boolean
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
  extendCreates: false,
  healsInQuarantine: false
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

/** By voter, whether a command is still to be executed there. */
type Commands = ReadonlyArray<boolean>

interface Ballot {
  readonly phase: "new" | "asking" | "inside" | "over"
  readonly sentAt: number
  readonly validUntil: number
  readonly acquire: Commands
  readonly extend: Commands
  readonly heal: Commands
  readonly takeBack: Commands
  /** What was done of what the client waits for: votes given, or extended. */
  readonly counted: ReadonlyArray<boolean>
  /** The renewal under way, or -1. */
  readonly renewedAt: number
}

interface State {
  readonly now: number
  readonly voters: ReadonlyArray<Voter>
  readonly ballots: ReadonlyArray<Ballot>
  readonly renewals: number
  readonly restarts: number
}

const all = (value: boolean): ReadonlyArray<boolean> => voters.map(() => value)

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
      client(name, b, { ...ballot, phase: "over", renewedAt: nobody, counted: all(false), takeBack: all(true) })

    ballots.forEach((ballot, b) => {
      const { counted, phase, renewedAt, sentAt, validUntil } = ballot
      const isMajority = counted.filter(Boolean).length >= majority
      const isBusy = ballots.some((it, e) => e < b && holderOf(e) === holderOf(b) && it.phase !== "over")
      // Holders are interchangeable where each has one ballot: they begin in order.
      const isTurn = variant.ballots.length > new Set(variant.ballots).size || ballots[b - 1]?.phase !== "new"
      if (phase === "new" && !isBusy && isTurn) {
        client(`cast ${b}`, b, { ...ballot, phase: "asking", sentAt: now, acquire: all(true) })
      }
      if (phase === "asking") {
        const from = variant.validFrom === "sending" ? sentAt : now
        if (isMajority && now < from + ttl) {
          client(`${b} enters`, b, { ...ballot, phase: "inside", validUntil: from + ttl, counted: all(false) })
        }
        end(`${b} is not won`, b, ballot)
      }
      if (phase === "inside") {
        if (now < validUntil && renewedAt === nobody && state.renewals < variant.renewals) {
          const renewing = { ...ballot, renewedAt: now, extend: all(true) }
          steps.push([
            `${b} renews`,
            { ...state, renewals: state.renewals + 1, ballots: ballots.with(b, renewing) }
          ])
        }
        if (now < validUntil && renewedAt !== nobody && isMajority) {
          client(`${b} is renewed`, b, {
            ...ballot,
            validUntil: Math.max(validUntil, renewedAt + ttl),
            renewedAt: nobody,
            counted: all(false),
            heal: counted.map((it, v) => !it || ballot.heal[v]!)
          })
        }
        end(`${b} ends`, b, ballot)
      }

      // A command that would change nothing now is as good as one that is later still.
      for (const v of voters) {
        const voter = state.voters[v]!
        const isLive = voter.vote !== nobody && voter.expiry > now
        const mine: Voter = { ...voter, vote: b, expiry: now + ttl }
        const isOfHolder = isLive && holderOf(voter.vote) === holderOf(b)
        const isLaterRound = voter.vote < b || variant.earlierRoundsOvertake
        if (ballot.acquire[v] && (isLive ? isOfHolder && isLaterRound : now >= voter.votesFrom)) {
          const acquire = ballot.acquire.with(v, false)
          at(`acquire ${b} at ${v}`, v, mine, b, { ...ballot, acquire, counted: counted.with(v, phase === "asking") })
        }
        if (ballot.extend[v] && (isLive ? voter.vote === b : variant.extendCreates)) {
          const longer = { ...mine, expiry: Math.max(voter.expiry, now + ttl) }
          const extend = ballot.extend.with(v, false)
          at(`extend ${b} at ${v}`, v, longer, b, { ...ballot, extend, counted: counted.with(v, renewedAt !== nobody) })
        }
        if (ballot.heal[v] && !isLive && (now >= voter.votesFrom || variant.healsInQuarantine)) {
          at(`heal ${b} at ${v}`, v, mine, b, { ...ballot, heal: ballot.heal.with(v, false) })
        }
        if (ballot.takeBack[v] && (variant.takeBackBy === "nonce" ? isLive && voter.vote === b : isOfHolder)) {
          const none: Voter = { ...voter, vote: nobody, expiry: 0 }
          at(`takeBack ${b} at ${v}`, v, none, b, { ...ballot, takeBack: ballot.takeBack.with(v, false) })
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
        acquire: all(false),
        extend: all(false),
        heal: all(false),
        takeBack: all(false),
        counted: all(false),
        renewedAt: nobody
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
    for (const { acquire, counted, extend, heal, takeBack } of ballots) {
      const flags = [acquire[v], extend[v], heal[v], takeBack[v], counted[v]]
      column += String.fromCharCode(64 + flags.reduce((sum, flag) => 2 * sum + (flag ? 1 : 0), 0))
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
