import { assert, describe, it } from "@effect/vitest"
import { check, type Liveness, type Model } from "../checker.ts"

/** Steps by name, from numbered states to numbered states. */
const graph = (
  edges: Readonly<Record<number, Readonly<Record<string, number>>>>,
  goal: number,
  fair: (step: string) => boolean = () => true
): Model<number> & { readonly liveness: Liveness<number> } => ({
  initial: [0],
  steps: (state) => Object.entries(edges[state] ?? {}),
  key: String,
  invariants: {},
  liveness: { goal: (state) => state === goal, fair }
})

describe("check", () => {
  it("visits every state once, however many ways lead there", () => {
    const grid: Model<readonly [number, number]> = {
      initial: [[0, 0]],
      steps: ([x, y]) => [
        ...(x < 9 ? [["right", [x + 1, y]] as const] : []),
        ...(y < 9 ? [["up", [x, y + 1]] as const] : [])
      ],
      key: String,
      invariants: { "stays inside": ([x, y]) => x <= 9 && y <= 9 }
    }
    assert.deepStrictEqual(check(grid), { states: 100, steps: 180, depth: 18, violated: undefined, story: [] })
  })

  it("tells the shortest story of a violation", () => {
    const model = { ...graph({ 0: { long: 1, short: 3 }, 1: { on: 2 }, 2: { on: 4 }, 3: { on: 4 } }, 4) }
    const report = check({ ...model, invariants: { "never four": (state: number) => state !== 4 } })
    assert.strictEqual(report.violated, "never four")
    assert.deepStrictEqual(report.story, ["short", "on"])
  })

  it("notices an initial state that violates an invariant", () => {
    const report = check({ ...graph({}, 0), invariants: { "not zero": (state: number) => state !== 0 } })
    assert.strictEqual(report.violated, "not zero")
    assert.deepStrictEqual(report.story, [])
  })

  it("does not mind a circle that a fair step leads out of, from every state of it", () => {
    const report = check(graph({ 0: { round: 1, out: 2 }, 1: { round: 0, out: 2 } }, 2))
    assert.isUndefined(report.violated)
  })

  it("minds a circle that only an unfair step leads out of", () => {
    const report = check(graph({ 0: { round: 1, out: 2 }, 1: { round: 0, out: 2 } }, 2, (step) => step === "round"))
    assert.strictEqual(report.violated, "liveness")
    assert.deepStrictEqual(report.story, ["for ever: round"])
  })

  it("minds a circle in which the step that leads out is not always possible", () => {
    const report = check(graph({ 0: { begin: 1 }, 1: { on: 2, out: 3 }, 2: { back: 1 } }, 3))
    assert.strictEqual(report.violated, "liveness")
    assert.deepStrictEqual(report.story, ["begin", "for ever: on, back"])
  })

  it("minds a dead end", () => {
    const report = check(graph({ 0: { lost: 1, found: 2 } }, 2))
    assert.strictEqual(report.violated, "liveness")
    assert.deepStrictEqual(report.story, ["lost", "for ever: nothing"])
  })

  it("minds staying where only unfair steps are possible", () => {
    const report = check(graph({ 0: { luck: 1 } }, 1, () => false))
    assert.deepStrictEqual(report.story, ["for ever: nothing"])
  })
})
