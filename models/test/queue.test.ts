import { describe } from "@effect/vitest"
import { queueCases } from "../cases.ts"
import { checkAll } from "./suite.ts"

describe("queue", () => {
  checkAll(queueCases)
})
