import * as path from "node:path"
import { defineConfig } from "vitest/config"
import type { Reporter } from "vitest/node"
import { generateDoctests, mapDoctestsToDocuments } from "./scripts/doctest.ts"

const root = import.meta.dirname
generateDoctests()

const project = (name: string, folder: string, include = "test/**/*.test.ts") => ({
  extends: true as const,
  test: { name, root: path.join(root, folder), include: [include] }
})

// One line with both figures, after vitest's own summary: what did not even start counts as failed.
const closingLine: Reporter = {
  onTestRunEnd(modules, unhandledErrors) {
    const states = modules.flatMap((module) => Array.from(module.children.allTests(), (test) => test.result().state))
    const errors = modules.flatMap((module) => [module, ...module.children.allSuites()].flatMap((it) => it.errors()))
    const count = (state: string) => states.filter((it) => it === state).length
    const failed = count("failed") + errors.length + unhandledErrors.length
    console.log(`${count("passed")} passed, ${failed} failed`)
  }
}

export default defineConfig({
  resolve: {
    alias: [
      { find: /^@effect-lock\/([^/]+)$/, replacement: path.join(root, "packages/$1/src/index.ts") },
      { find: /^@effect-lock\/([^/]+)\/(.+)$/, replacement: path.join(root, "packages/$1/src/$2.ts") }
    ]
  },
  test: {
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // On two cores vitest would take one, and most of what tests on real servers do is wait.
    maxWorkers: 3,
    reporters: ["default", closingLine],
    projects: [
      project("core", "packages/core"),
      project("redis", "packages/redis"),
      project("test-utils", "packages/test-utils"),
      project("examples", "examples"),
      project("models", "models"),
      { ...project("docs", ".doctest", "**/*.test.ts"), plugins: [mapDoctestsToDocuments()] }
    ]
  }
})
