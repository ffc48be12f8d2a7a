/**
 * The tokens of a quorum whose voters may lose their memory: `quorum.ts` with clocks. Counters are never below the voter's
 * clock, attempts end with their ttl, and a voter that has restarted withholds its vote (`withheld` of quorumScripts.ts).
 */
import type { Model, Step } from "./checker.ts"

export interface Variant {
  readonly attempts: number
  /** Whether the clock takes part in the counter, or it is a plain one. */
  readonly hybrid: boolean
  /** By how much a voter's clock may be off, this way and that way, granularity included. */
  readonly clockError: number
  /** The longest time that an attempt takes, which is never more than its ttl. */
  readonly attemptTime: number
  /** How long a restarted voter does not vote. */
  readonly quarantine: number
  /** How often a voter restarts with nothing in its memory. */
  readonly restarts: number
}

export const protocol: Variant = {
  attempts: 2,
  hybrid: true,
  clockError: 1,
  attemptTime: 2,
  quarantine: 5,
  restarts: 1
}

const voters = [0, 1, 2] as const
const majority = 2
const nobody = -1

interface Voter {
  readonly lock: number
  readonly lockCounter: number
  readonly counter: number
  /** When its quarantine ends. */
  readonly votesFrom: number
}

interface Attempt {
  readonly phase: "new" | "asking" | "writing" | "done"
  readonly startedAt: number
  /** What `acquire` has answered, by voter; 0 where it was not executed. */
  readonly granted: ReadonlyArray<number>
  readonly used: number
  readonly confirmed: number
  readonly token: number
  readonly before: number
}

interface State {
  readonly now: number
  readonly voters: ReadonlyArray<Voter>
  readonly attempts: ReadonlyArray<Attempt>
  readonly restarts: number
}

export const model = (variant: Variant): Model<State> => ({
  initial: [{
    now: variant.clockError + 1,
    voters: voters.map(() => ({ lock: nobody, lockCounter: 0, counter: 0, votesFrom: 0 })),
    attempts: Array.from({ length: variant.attempts }, () => ({
      phase: "new",
      startedAt: 0,
      granted: voters.map(() => 0),
      used: 0,
      confirmed: 0,
      token: 0,
      before: 0
    })),
    restarts: 0
  }],
  steps: (state) => {
    const steps: Array<Step<State>> = [["time passes", { ...state, now: state.now + 1 }]]
    state.attempts.forEach(({ phase, startedAt }, a) => {
      if (phase !== "new" && state.now > startedAt + variant.attemptTime) return
      for (const v of voters) {
        acquire(steps, variant, state, a, v)
        writeBack(steps, state, a, v)
      }
      decide(steps, state, a)
    })
    for (const v of voters) {
      expire(steps, state, v)
      if (state.restarts < variant.restarts) restart(steps, variant, state, v)
    }
    return steps
  },
  key: keyOf(variant),
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

/** `acquire`. It takes time to execute: there are never more grants than a unit of the clock has numbers. */
const acquire = (steps: Array<Step<State>>, variant: Variant, state: State, a: number, v: number): void => {
  const attempt = state.attempts[a]!
  const voter = state.voters[v]!
  const isAsked = attempt.phase === "new" || attempt.phase === "asking"
  if (!isAsked || voter.lock !== nobody || attempt.granted[v] !== 0 || state.now < voter.votesFrom) return
  const { clockError } = variant
  for (const clock of new Set([state.now - clockError, state.now + clockError])) {
    const c = variant.hybrid ? Math.max(voter.counter + 1, clock) : voter.counter + 1
    const isNew = attempt.phase === "new"
    steps.push([
      `acquire ${a} at ${v} grants ${c}`,
      {
        ...state,
        now: state.now + 1,
        voters: state.voters.with(v, { ...voter, lock: a, lockCounter: c, counter: c }),
        attempts: state.attempts.with(a, {
          ...attempt,
          phase: "asking",
          startedAt: isNew ? state.now : attempt.startedAt,
          before: isNew ? setOf(state.attempts, (it) => it.phase === "done") : attempt.before,
          granted: attempt.granted.with(v, c)
        })
      }
    ])
    if (!variant.hybrid) return
  }
}

/** `decide` of quorumBallot.ts. */
const decide = (steps: Array<Step<State>>, state: State, a: number): void => {
  const attempt = state.attempts[a]!
  if (attempt.phase !== "asking") return
  const granted = setOf(attempt.granted, (it) => it !== 0)
  for (let used = 1; used < 1 << voters.length; used++) {
    if ((used & granted) !== used || size(used) < majority) continue
    const token = Math.max(...voters.map((v) => has(used, v) ? attempt.granted[v]! : 0))
    const confirmed = setOf(attempt.granted, (it, v) => it === token && has(used, v))
    const phase = size(confirmed) >= majority ? "done" : "writing"
    const decided: Attempt = { ...attempt, phase, used, confirmed, token }
    steps.push([`${a} takes ${token}, ${phase}`, { ...state, attempts: state.attempts.with(a, decided) }])
  }
}

/** `writeBack`. */
const writeBack = (steps: Array<Step<State>>, state: State, a: number, v: number): void => {
  const attempt = state.attempts[a]!
  const voter = state.voters[v]!
  if (attempt.phase !== "writing" || !has(attempt.used & ~attempt.confirmed, v)) return
  if (voter.lock !== a || voter.lockCounter !== attempt.granted[v]) return
  const confirmed = attempt.confirmed | 1 << v
  const phase = size(confirmed) >= majority ? "done" : "writing"
  steps.push([
    `writeBack ${a} of ${attempt.token} at ${v}, ${phase}`,
    {
      ...state,
      voters: state.voters.with(v, { ...voter, counter: Math.max(voter.counter, attempt.token) }),
      attempts: state.attempts.with(a, { ...attempt, phase, confirmed })
    }
  ])
}

/** The vote ends, for whatever reason. */
const expire = (steps: Array<Step<State>>, state: State, v: number): void => {
  const voter = state.voters[v]!
  if (voter.lock === nobody) return
  steps.push([
    `vote of ${v} ends`,
    { ...state, voters: state.voters.with(v, { ...voter, lock: nobody, lockCounter: 0 }) }
  ])
}

/** Memory gone; the vote withheld until `uptime_in_seconds` is long enough. */
const restart = (steps: Array<Step<State>>, variant: Variant, state: State, v: number): void => {
  const empty = { lock: nobody, lockCounter: 0, counter: 0, votesFrom: state.now + variant.quarantine }
  steps.push([
    `${v} restarts empty`,
    { ...state, restarts: state.restarts + 1, voters: state.voters.with(v, empty) }
  ])
}

const has = (set: number, member: number): boolean => (set & 1 << member) !== 0

const size = (set: number): number => voters.filter((v) => has(set, v)).length

const setOf = <A>(items: ReadonlyArray<A>, belongs: (item: A, index: number) => boolean): number =>
  items.reduce((set, item, index) => belongs(item, index) ? set | 1 << index : set, 0)

/**
 * Only how far back something lies counts, and no further back than anything can still reach: so time has no end, and yet
 * there are finitely many states. A plain counter knows no time, and stays as it is. Of an attempt that is over only the
 * token counts.
 */
const keyOf = ({ attempts: count, attemptTime, clockError, hybrid, quarantine }: Variant) => {
  const orders = permutations(Array.from({ length: count }, (_, a) => a))
  const horizon = attemptTime + quarantine + 3 * clockError + 2
  return ({ attempts, now, restarts, voters }: State): string => {
    const digit = (value: number) => String.fromCharCode(48 + value)
    const tick = (value: number) => digit(!hybrid || value === 0 ? value : Math.max(1, value - now + horizon))
    const isOver = attempts.map(({ phase, startedAt }) =>
      phase === "done" || (phase !== "new" && now > startedAt + attemptTime)
    )
    const texts = orders.map((order) => {
      const columns = voters.map(({ counter, lock, lockCounter, votesFrom }, v) => {
        const left = digit(Math.max(0, votesFrom - now))
        if (lock === nobody) return columnOf(order, v, `-${left}${tick(counter)}`)
        if (isOver[lock]) return columnOf(order, v, `x${left}${tick(counter)}`)
        return columnOf(order, v, `${order.indexOf(lock)}${left}${tick(counter)}${tick(lockCounter)}`)
      })
      const rest = order.map((a) => {
        const { before, phase, startedAt, token } = attempts[a]!
        if (phase === "new") return "n"
        const earlier = order.map((b) => has(before, b) ? 1 : 0).join("")
        if (phase === "done") return `d${tick(token)}${earlier}`
        return isOver[a] ? "x" : `${phase[0]}${now - startedAt}${tick(token)}${earlier}`
      })
      return `${columns.toSorted().join(" ")} ${rest.join(" ")}${restarts}`
    })
    return texts.reduce((smallest, text) => text < smallest ? text : smallest)

    function columnOf(order: ReadonlyArray<number>, v: number, column: string): string {
      for (const a of order) {
        if (isOver[a]) continue
        const { confirmed, granted, used } = attempts[a]!
        column += `${tick(granted[v]!)}${(has(used, v) ? 1 : 0) + (has(confirmed, v) ? 2 : 0)}`
      }
      return column
    }
  }
}

const permutations = (items: ReadonlyArray<number>): ReadonlyArray<ReadonlyArray<number>> =>
  items.length < 2
    ? [items]
    : items.flatMap((item) => permutations(items.filter((it) => it !== item)).map((rest) => [item, ...rest]))
