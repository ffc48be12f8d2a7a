import { describe } from "@effect/vitest"
import { leaseCases, memoryCases, tokenCases } from "../cases.ts"
import { checkAll } from "./suite.ts"

describe("quorum: tokens, of voters that keep their memory", () => {
  checkAll(tokenCases)
})
describe("quorum: tokens, of voters that restart empty", () => {
  checkAll(memoryCases)
})
describe("quorum: exclusion", () => {
  checkAll(leaseCases)
})
