/**
 * The fencing tokens of a quorum of voters: quorumScripts.ts and quorumBallot.ts of packages/redis. No clock anywhere: a vote
 * may end at any moment, for whatever reason, and commands and replies are as late as they like. Voters keep their memory
 * here; `quorumMemory.ts` is about those that lose it, `quorumLease.ts` about exclusion.
 */
import type { Model, Step } from "./checker.ts"

export interface Variant {
  readonly attempts: number
  /** How often `acquire` is executed a second time, because a client sends again what was not answered. */
  readonly duplicates: number
  /** Whether clients pass on the highest counter they know of, as `floor`. */
  readonly floors: boolean
  /** Whether a lease is given votes where it has none any more. */
  readonly heals: boolean
  readonly writeBack: "ifStillHeld" | "always" | "never"
  /** Confirmations count only at voters whose grant was known when the maximum was taken. */
  readonly onlyUsed: boolean
  /** Whether the vote says which counter it was given, beside the nonce. */
  readonly counterInLock: boolean
}

export const protocol: Variant = {
  attempts: 2,
  duplicates: 0,
  floors: false,
  heals: false,
  writeBack: "ifStillHeld",
  onlyUsed: true,
  counterInLock: true
}

const voters = [0, 1, 2] as const
const majority = 2
const nobody = -1

interface Voter {
  /** `n`, as the attempt that it belongs to, and `k`. */
  readonly lock: number
  readonly lockCounter: number
  /** `c` */
  readonly counter: number
}

interface Attempt {
  readonly phase: "new" | "asking" | "writing" | "done"
  /** What `acquire` has answered, by voter; 0 where it was not executed. */
  readonly granted: ReadonlyArray<number>
  /** The voters whose grants the maximum was taken of, and those that confirm it. Sets of bits, as `before` is. */
  readonly used: number
  readonly confirmed: number
  readonly token: number
  /** The attempts that were complete before this one began. */
  readonly before: number
}

interface State {
  readonly voters: ReadonlyArray<Voter>
  readonly attempts: ReadonlyArray<Attempt>
  readonly duplicates: number
}

export const model = (variant: Variant): Model<State> => ({
  initial: [{
    voters: voters.map(() => ({ lock: nobody, lockCounter: 0, counter: 0 })),
    attempts: Array.from({ length: variant.attempts }, () => ({
      phase: "new",
      granted: voters.map(() => 0),
      used: 0,
      confirmed: 0,
      token: 0,
      before: 0
    })),
    duplicates: 0
  }],
  steps: (state) => {
    const steps: Array<Step<State>> = []
    state.attempts.forEach((attempt, a) => {
      for (const v of voters) {
        for (const floor of floorsOf(variant, state)) acquire(steps, state, a, v, floor)
        if (state.duplicates < variant.duplicates) acquireAgain(steps, state, a, v)
        writeBack(steps, variant, state, a, v)
        if (variant.heals) heal(steps, state, a, v)
      }
      if (attempt.phase === "asking") decide(steps, variant, state, a)
    })
    for (const v of voters) expire(steps, state, v)
    return steps
  },
  key: keyOf(variant.attempts),
  invariants: {
    "tokens are unique": ({ attempts }) => {
      const tokens = attempts.filter((it) => it.phase === "done").map((it) => it.token)
      return new Set(tokens).size === tokens.length
    },
    "tokens grow in real time": ({ attempts }) =>
      attempts.every((later) =>
        later.phase !== "done" ||
        attempts.every((earlier, e) => !has(later.before, e) || earlier.token < later.token)
      )
  }
})

// None, or the highest counter of all.
const floorsOf = (variant: Variant, state: State): ReadonlyArray<number> =>
  variant.floors ? [0, Math.max(...state.voters.map((it) => it.counter))] : [0]

/**
 * `acquire` at a voter whose vote nobody has. An attempt counts as begun when the first is executed: the latest moment there
 * is, and so the strictest. One executed when the client no longer waits for it takes the lock all the same.
 */
const acquire = (steps: Array<Step<State>>, state: State, a: number, v: number, floor: number): void => {
  const attempt = state.attempts[a]!
  const { counter, lock } = state.voters[v]!
  if (lock !== nobody || attempt.granted[v] !== 0 || (floor > 0 && floor <= counter)) return
  const c = Math.max(counter, floor) + 1
  const before = attempt.phase === "new" ? setOf(state.attempts, (it) => it.phase === "done") : attempt.before
  steps.push([
    `acquire ${a} at ${v} grants ${c}`,
    {
      ...state,
      voters: state.voters.with(v, { lock: a, lockCounter: c, counter: c }),
      attempts: state.attempts.with(a, {
        ...attempt,
        phase: attempt.phase === "new" ? "asking" : attempt.phase,
        granted: attempt.granted.with(v, c),
        before
      })
    }
  ])
}

/** The same `acquire` a second time, after what it took has vanished: either reply may be the one that the client gets. */
const acquireAgain = (steps: Array<Step<State>>, state: State, a: number, v: number): void => {
  const attempt = state.attempts[a]!
  const voter = state.voters[v]!
  if (voter.lock !== nobody || attempt.granted[v] === 0) return
  const c = voter.counter + 1
  const after = {
    ...state,
    duplicates: state.duplicates + 1,
    voters: state.voters.with(v, { lock: a, lockCounter: c, counter: c })
  }
  steps.push([`acquire ${a} at ${v} again, reply lost`, after])
  if (attempt.phase === "asking") {
    const granted = attempt.granted.with(v, c)
    steps.push([`acquire ${a} at ${v} again, grants ${c}`, {
      ...after,
      attempts: state.attempts.with(a, { ...attempt, granted })
    }])
  }
}

/**
 * `decide` of quorumBallot.ts: the client has a majority of grants, or more, and takes their maximum; a voter that granted
 * just that confirms it already.
 */
const decide = (steps: Array<Step<State>>, variant: Variant, state: State, a: number): void => {
  const attempt = state.attempts[a]!
  const granted = setOf(attempt.granted, (it) => it !== 0)
  for (let used = 1; used < 1 << voters.length; used++) {
    if ((used & granted) !== used || size(used) < majority) continue
    const token = Math.max(...voters.map((v) => has(used, v) ? attempt.granted[v]! : 0))
    const confirmed = setOf(attempt.granted, (it, v) => it === token && has(used, v))
    const isDone = size(confirmed) >= majority || variant.writeBack === "never"
    const phase = isDone ? "done" : "writing"
    const decided: Attempt = { ...attempt, phase, used, confirmed, token }
    steps.push([
      `${a} takes ${token}${isDone ? ", done" : ""}`,
      { ...state, attempts: state.attempts.with(a, decided) }
    ])
  }
}

/**
 * `writeBack`: raises the voter's counter to the token if its vote is still the one that was given. Where the grant came too
 * late to be counted, that is done as well (`spread`), and confirms nothing.
 */
const writeBack = (steps: Array<Step<State>>, variant: Variant, state: State, a: number, v: number): void => {
  const attempt = state.attempts[a]!
  const voter = state.voters[v]!
  const isDecided = attempt.phase === "writing" || attempt.phase === "done"
  if (!isDecided || variant.writeBack === "never" || has(attempt.confirmed, v)) return
  if (variant.writeBack === "ifStillHeld") {
    if (voter.lock !== a || (variant.counterInLock && voter.lockCounter !== attempt.granted[v])) return
  }
  const confirms = has(attempt.used, v) || !variant.onlyUsed
  const confirmed = confirms ? attempt.confirmed | 1 << v : attempt.confirmed
  const phase = size(confirmed) >= majority ? "done" : attempt.phase
  steps.push([
    `writeBack ${a} of ${attempt.token} at ${v}${confirms ? "" : ", not counted"}${
      phase === attempt.phase ? "" : ", done"
    }`,
    {
      ...state,
      voters: state.voters.with(v, { ...voter, counter: Math.max(voter.counter, attempt.token) }),
      attempts: state.attempts.with(a, { ...attempt, phase, confirmed })
    }
  ])
}

/** `heal`: the vote of a lease where there is none, with the token for a counter. Not even a majority is asked for here. */
const heal = (steps: Array<Step<State>>, state: State, a: number, v: number): void => {
  const { phase, token } = state.attempts[a]!
  const { counter, lock } = state.voters[v]!
  if (phase !== "done" || lock !== nobody) return
  const healed: Voter = { lock: a, lockCounter: token, counter: Math.max(counter, token) }
  steps.push([`heal ${a} at ${v}`, { ...state, voters: state.voters.with(v, healed) }])
}

/** The vote ends: its time is over, `release` takes it back, a later round of its holder replaces it, or it is deleted. */
const expire = (steps: Array<Step<State>>, state: State, v: number): void => {
  const voter = state.voters[v]!
  if (voter.lock === nobody) return
  steps.push([
    `vote of ${v} ends`,
    { ...state, voters: state.voters.with(v, { ...voter, lock: nobody, lockCounter: 0 }) }
  ])
}

const has = (set: number, member: number): boolean => (set & 1 << member) !== 0

const size = (set: number): number => voters.filter((v) => has(set, v)).length

const setOf = <A>(items: ReadonlyArray<A>, belongs: (item: A, index: number) => boolean): number =>
  items.reduce((set, item, index) => belongs(item, index) ? set | 1 << index : set, 0)

/** One character each, so that no two texts can mean the same. */
const digit = (number: number): string => String.fromCharCode(48 + number)

/** Voters are interchangeable, and so are attempts: of all ways to number them, the one with the smallest text. */
const keyOf = (count: number) => {
  const orders = permutations(Array.from({ length: count }, (_, a) => a))
  return ({ attempts, duplicates, voters }: State): string => {
    const cells = attempts.map(({ confirmed, granted, used }) =>
      voters.map((_, v) => digit(granted[v]!) + digit((has(used, v) ? 1 : 0) + (has(confirmed, v) ? 2 : 0)))
    )
    let smallest: string | undefined
    for (const order of orders) {
      const columns = voters.map(({ counter, lock, lockCounter }, v) => {
        let column = digit(counter) + (lock === nobody ? "-" : digit(order.indexOf(lock))) + digit(lockCounter)
        for (const a of order) column += cells[a]![v]
        return column
      })
      let text = `${columns.toSorted().join("")}${digit(duplicates)}`
      for (const a of order) {
        const { before, phase, token } = attempts[a]!
        text += phase[0]! + digit(token)
        for (const b of order) text += has(before, b) ? "<" : " "
      }
      if (smallest === undefined || text < smallest) smallest = text
    }
    return smallest!
  }
}

const permutations = (items: ReadonlyArray<number>): ReadonlyArray<ReadonlyArray<number>> =>
  items.length < 2
    ? [items]
    : items.flatMap((item) => permutations(items.filter((it) => it !== item)).map((rest) => [item, ...rest]))
