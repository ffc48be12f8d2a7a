import { afterAll, assert, it } from "@effect/vitest"
import type { Case } from "../cases.ts"

/** A test for each case; and at the end, how much was looked at. */
export const checkAll = (cases: ReadonlyArray<Case>): void => {
  const results: Array<string> = []
  for (const { run, title, violates } of cases) {
    it(`${violates === undefined ? "holds" : "is caught"}: ${title}`, () => {
      const startedAt = performance.now()
      const { states, story, violated } = run()
      const seconds = (performance.now() - startedAt) / 1000
      const outcome = violated === undefined ? "holds" : `violated in ${story.length} steps: ${violated}`
      results.push(`${states.toLocaleString("en")} states, ${seconds.toFixed(1)} s: ${title}: ${outcome}`)
      assert.strictEqual(violated, violates, story.join("\n"))
    }, 300_000)
  }
  afterAll(() => console.log(results.join("\n")))
}
