/**
 * The fencing tokens of a quorum of voters: `QuorumLockStore`, docs/protocol.md. No clock anywhere: a lock key may vanish at
 * any moment, for whatever reason, and replies and commands are as late as they like. Voters keep their memory here;
 * `quorumMemory.ts` is about those that lose it.
 */
import type { Model, Step } from "./checker.ts"

export interface Variant {
  readonly attempts: number
  /** How many ACQ commands may be executed a second time (a client that sends again what was not answered). */
  readonly duplicates: number
  /** Whether clients pass on the highest counter they know of, as `floor` of ACQ. */
  readonly floors: boolean
  /** Whether leases are healed: voters that lost theirs are given it anew. */
  readonly heals: boolean
  readonly writeBack: "ifStillHeld" | "always" | "never"
  /** Confirmations count only at voters whose grant was known when the maximum was taken. */
  readonly onlyUsed: boolean
  /** The lock key's value is `nonce:c`, not just `nonce`. */
  readonly grantInLock: boolean
}

export const protocol: Variant = {
  attempts: 2,
  duplicates: 1,
  floors: false,
  heals: false,
  writeBack: "ifStillHeld",
  onlyUsed: true,
  grantInLock: true
}

const voters = [0, 1, 2] as const
const majority = 2
const nobody = -1

interface Voter {
  /** The attempt whose nonce is in the lock key, and the counter that is beside it. */
  readonly lock: number
  readonly lockCounter: number
  readonly counter: number
}

interface Attempt {
  readonly phase: "new" | "asking" | "writing" | "done"
  /** What ACQ has answered, by voter; 0 where it was not executed. */
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

// A floor between none and the highest counter of all would be a counter that some voter could have had.
const floorsOf = (variant: Variant, state: State): ReadonlyArray<number> =>
  variant.floors ? [0, Math.max(...state.voters.map((it) => it.counter))] : [0]

/**
 * ACQ at a voter where nobody holds the lock. An attempt counts as begun when the first is executed: the latest moment there
 * is, and so the strictest. One executed when the client no longer waits for it takes the lock all the same.
 */
const acquire = (steps: Array<Step<State>>, state: State, a: number, v: number, floor: number): void => {
  const attempt = state.attempts[a]!
  const { counter, lock } = state.voters[v]!
  if (lock !== nobody || attempt.granted[v] !== 0 || (floor > 0 && floor <= counter)) return
  const c = Math.max(counter, floor) + 1
  const before = attempt.phase === "new" ? setOf(state.attempts, (it) => it.phase === "done") : attempt.before
  steps.push([
    `ACQ ${a} at ${v} grants ${c}`,
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

/** The same ACQ a second time, after what it took has vanished: either reply may be the one that the client gets. */
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
  steps.push([`ACQ ${a} at ${v} again, reply lost`, after])
  if (attempt.phase === "asking") {
    const granted = attempt.granted.with(v, c)
    steps.push([`ACQ ${a} at ${v} again, grants ${c}`, {
      ...after,
      attempts: state.attempts.with(a, { ...attempt, granted })
    }])
  }
}

/** The client has a majority of grants, or more, and takes their maximum; where that was granted, it needs no WB. */
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

/** WB: raises the voter's counter to the token if the lock key still has exactly what ACQ has put there. */
const writeBack = (steps: Array<Step<State>>, variant: Variant, state: State, a: number, v: number): void => {
  const attempt = state.attempts[a]!
  const voter = state.voters[v]!
  const isAsked = attempt.phase === "writing" || (attempt.phase === "done" && variant.writeBack !== "never")
  if (!isAsked || has(attempt.confirmed, v) || (variant.onlyUsed && !has(attempt.used, v))) return
  if (variant.writeBack === "ifStillHeld") {
    if (voter.lock !== a || (variant.grantInLock && voter.lockCounter !== attempt.granted[v])) return
  }
  const confirmed = attempt.confirmed | 1 << v
  const phase = size(confirmed) >= majority ? "done" : attempt.phase
  steps.push([
    `WB ${a} of ${attempt.token} at ${v}${phase === attempt.phase ? "" : ", done"}`,
    {
      ...state,
      voters: state.voters.with(v, { ...voter, counter: Math.max(voter.counter, attempt.token) }),
      attempts: state.attempts.with(a, { ...attempt, phase, confirmed })
    }
  ])
}

/** HEAL: the vote of a lease where there is none, with the token for a counter. Not even a majority is asked for here. */
const heal = (steps: Array<Step<State>>, state: State, a: number, v: number): void => {
  const { phase, token } = state.attempts[a]!
  const { counter, lock } = state.voters[v]!
  if (phase !== "done" || lock !== nobody) return
  const healed: Voter = { lock: a, lockCounter: token, counter: Math.max(counter, token) }
  steps.push([`HEAL ${a} at ${v}`, { ...state, voters: state.voters.with(v, healed) }])
}

/** The lock key goes: its ttl is over, its owner has sent REL, or somebody has deleted it. */
const expire = (steps: Array<Step<State>>, state: State, v: number): void => {
  const voter = state.voters[v]!
  if (voter.lock === nobody) return
  steps.push([
    `lock at ${v} vanishes`,
    { ...state, voters: state.voters.with(v, { ...voter, lock: nobody, lockCounter: 0 }) }
  ])
}

const has = (set: number, member: number): boolean => (set & 1 << member) !== 0

const size = (set: number): number => voters.filter((v) => has(set, v)).length

const setOf = <A>(items: ReadonlyArray<A>, belongs: (item: A, index: number) => boolean): number =>
  items.reduce((set, item, index) => belongs(item, index) ? set | 1 << index : set, 0)

/** Voters are interchangeable, and so are attempts: of all ways to number them, the one with the smallest text. */
const keyOf = (count: number) => {
  const orders = permutations(Array.from({ length: count }, (_, a) => a))
  return ({ attempts, duplicates, voters }: State): string => {
    let smallest: string | undefined
    for (const order of orders) {
      const place = (a: number) => a === nobody ? 9 : order.indexOf(a)
      const columns = voters.map((voter, v) => {
        let column = `${voter.counter}${place(voter.lock)}${voter.lockCounter}`
        for (const a of order) {
          const { confirmed, granted, used } = attempts[a]!
          column += `${granted[v]}${(has(used, v) ? 1 : 0) + (has(confirmed, v) ? 2 : 0)}`
        }
        return column
      })
      let text = columns.toSorted().join(" ") + duplicates
      for (const a of order) {
        const { before, phase, token } = attempts[a]!
        text += `${phase[0]}${token}${order.map((b) => has(before, b) ? 1 : 0).join("")}`
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
