/**
 * A small explicit-state model checker: breadth first through every reachable state of a model, so that what it finds broken
 * comes with a shortest story, and what it does not find is not there.
 */

/** What can happen in a state: the name of the step, and the state after it. */
export type Step<State> = readonly [name: string, next: State]

export interface Model<State> {
  readonly initial: ReadonlyArray<State>
  /** Every step that is possible, always in the same order. States are never changed in place. */
  readonly steps: (state: State) => ReadonlyArray<Step<State>>
  /** The same for two states that behave alike. */
  readonly key: (state: State) => string
  /** What must be true in every state. */
  readonly invariants: Readonly<Record<string, (state: State) => boolean>>
  readonly liveness?: Liveness<State>
}

/** Every run reaches the goal in which no fair step is possible for ever and yet never taken. */
export interface Liveness<State> {
  readonly goal: (state: State) => boolean
  readonly fair: (step: string) => boolean
}

export interface Report {
  readonly states: number
  readonly steps: number
  /** Steps to the state that is the furthest away. */
  readonly depth: number
  /** The invariant that does not hold, or `liveness`. */
  readonly violated: string | undefined
  /** The steps that lead there; for `liveness`, then those that go round and round. */
  readonly story: ReadonlyArray<string>
}

export const check = <State>(model: Model<State>): Report => {
  const { invariants, key, liveness, steps } = model
  const known = new Map<string, number>()
  // By number of the state: which one it was found from, and by the how-many-eth step of that one.
  const parent: Array<number> = []
  const ordinal: Array<number> = []
  // Only for liveness: where the steps of a state begin in `edges`, as pairs of name and next state.
  const first: Array<number> = []
  const edges: Array<number> = []
  const names: Array<string> = []
  const numbers = new Map<string, number>()
  const atGoal: Array<boolean> = []

  const numberOf = (name: string): number => {
    const found = numbers.get(name)
    if (found !== undefined) return found
    numbers.set(name, names.length)
    return names.push(name) - 1
  }

  const storyOf = (target: number): ReadonlyArray<string> => {
    const path: Array<number> = []
    for (let at = target; at >= 0; at = parent[at]!) path.unshift(ordinal[at]!)
    let state = model.initial[path[0]!] as State
    return path.slice(1).map((taken) => {
      const [name, next] = steps(state)[taken]!
      state = next
      return name
    })
  }

  let frontier: Array<State> = []
  let found = 0
  let stepCount = 0
  let violated: string | undefined
  const visit = (state: State, from: number, by: number): number => {
    const id = key(state)
    const seen = known.get(id)
    if (seen !== undefined) return seen
    known.set(id, found)
    parent.push(from)
    ordinal.push(by)
    if (liveness !== undefined) atGoal.push(liveness.goal(state))
    frontier.push(state)
    violated ??= Object.keys(invariants).find((name) => !invariants[name]!(state))
    return found++
  }
  const report = (depth: number, story: ReadonlyArray<string>): Report => ({
    states: found,
    steps: stepCount,
    depth,
    violated,
    story
  })

  model.initial.forEach((state, index) => visit(state, -1, index))
  if (violated !== undefined) return report(0, [])
  let depth = 0
  let number = 0
  while (frontier.length > 0) {
    const level = frontier
    frontier = []
    for (const state of level) {
      first.push(edges.length)
      const possible = steps(state)
      stepCount += possible.length
      for (let index = 0; index < possible.length; index++) {
        const [name, next] = possible[index]!
        const reached = visit(next, number, index)
        if (violated !== undefined) return report(depth + 1, storyOf(reached))
        if (liveness !== undefined) edges.push(numberOf(name), reached)
      }
      number++
    }
    if (frontier.length > 0) depth++
  }
  if (liveness === undefined) return report(depth, [])

  first.push(edges.length)
  const fair = names.map((name) => liveness.fair(name))
  for (const component of components(found, first, edges, atGoal)) {
    const inside = new Set(component)
    const taken = new Set<number>()
    const everywhere = new Map<number, number>()
    for (const state of component) {
      const possible = new Set<number>()
      for (let edge = first[state]!; edge < first[state + 1]!; edge += 2) {
        possible.add(edges[edge]!)
        if (inside.has(edges[edge + 1]!)) taken.add(edges[edge]!)
      }
      for (const name of possible) everywhere.set(name, (everywhere.get(name) ?? 0) + 1)
    }
    const isFair = Array.from(everywhere).every(([name, count]) =>
      !fair[name]! || taken.has(name) || count < component.length
    )
    if (isFair) {
      violated = "liveness"
      const around = taken.size === 0 ? "nothing" : Array.from(taken, (name) => names[name]).join(", ")
      return report(depth, [...storyOf(Math.min(...component)), `for ever: ${around}`])
    }
  }
  return report(depth, [])
}

/** The strongly connected components outside the goal (Tarjan, without recursion): where a run can stay for ever. */
function* components(
  count: number,
  first: ReadonlyArray<number>,
  edges: ReadonlyArray<number>,
  atGoal: ReadonlyArray<boolean>
): Generator<ReadonlyArray<number>> {
  const index = new Int32Array(count).fill(-1)
  const low = new Int32Array(count)
  const position = new Int32Array(count)
  const isOpen = new Uint8Array(count)
  const open: Array<number> = []
  let next = 0
  for (let root = 0; root < count; root++) {
    if (index[root] !== -1 || atGoal[root]) continue
    const path = [root]
    while (path.length > 0) {
      const state = path.at(-1)!
      if (index[state] === -1) {
        index[state] = low[state] = next++
        position[state] = first[state]!
        isOpen[state] = 1
        open.push(state)
      }
      let descended = false
      while (position[state]! < first[state + 1]!) {
        const reached = edges[position[state]! + 1]!
        position[state]! += 2
        if (atGoal[reached]) continue
        if (index[reached] === -1) {
          path.push(reached)
          descended = true
          break
        }
        if (isOpen[reached]) low[state] = Math.min(low[state]!, index[reached]!)
      }
      if (descended) continue
      path.pop()
      const parent = path.at(-1)
      if (parent !== undefined) low[parent] = Math.min(low[parent]!, low[state]!)
      if (low[state] !== index[state]) continue
      const component = open.splice(open.lastIndexOf(state))
      for (const member of component) isOpen[member] = 0
      yield component
    }
  }
}
