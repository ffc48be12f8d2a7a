import { assert, describe, it } from "@effect/vitest"
import type { Model } from "../checker.ts"
import * as queue from "../queue.ts"
import * as quorum from "../quorum.ts"
import * as quorumLease from "../quorumLease.ts"
import * as quorumMemory from "../quorumMemory.ts"

/** What can be told of a state: what holds there, and where its steps lead. */
const behaviour = <State>({ invariants, key, liveness, steps }: Model<State>, state: State): string =>
  JSON.stringify([
    Object.values(invariants).map((holds) => holds(state)),
    liveness?.goal(state),
    Array.from(new Set(steps(state).map(([, next]) => key(next)))).toSorted()
  ])

/** The steps to states that have the key of another one, and behave differently: what a checker would overlook. */
const confusions = <State>(model: Model<State>, most: number): ReadonlyArray<string> => {
  const known = new Map(model.initial.map((state) => [model.key(state), behaviour(model, state)]))
  const confused: Array<string> = []
  let frontier = model.initial
  while (frontier.length > 0 && known.size < most) {
    const next: Array<State> = []
    for (const [name, state] of frontier.flatMap((it) => model.steps(it))) {
      const key = model.key(state)
      const first = known.get(key)
      const own = behaviour(model, state)
      if (first === undefined) {
        known.set(key, own)
        next.push(state)
      } else if (first !== own) confused.push(`${name}: ${key}`)
    }
    frontier = next
  }
  return confused
}

const setting = { waiters: [0, 1], late: 1, twice: 0, interrupts: 1, pauses: 1, deaths: 0 }

describe("states with one key behave alike", () => {
  it("queue", () => {
    assert.deepStrictEqual(confusions(queue.model(queue.rules, setting), 10_000), [])
  })

  it("quorum", () => {
    const variant = { ...quorum.protocol, duplicates: 1, heals: true }
    assert.deepStrictEqual(confusions(quorum.model(variant), 10_000), [])
  })

  it("quorumMemory", () => {
    assert.deepStrictEqual(confusions(quorumMemory.model(quorumMemory.protocol), 10_000), [])
  })

  it("quorumLease", () => {
    assert.deepStrictEqual(confusions(quorumLease.model(quorumLease.protocol), 10_000), [])
  })
})
