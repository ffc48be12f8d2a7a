/** What is checked: the protocols as they are, which must hold, and broken ones, of which each must be caught. */
import { check, type Model, type Report } from "./checker.ts"
import * as queue from "./queue.ts"
import * as quorum from "./quorum.ts"
import * as quorumLease from "./quorumLease.ts"
import * as quorumMemory from "./quorumMemory.ts"

export interface Case {
  readonly title: string
  readonly run: () => Report
  /** What a broken variant violates. */
  readonly violates: string | undefined
}

const make = <State>(title: string, model: Model<State>, violates?: string): Case => ({
  title,
  run: () => check(model),
  violates
})

const tokens = (title: string, variant: Partial<quorum.Variant>, violates?: string): Case =>
  make(title, quorum.model({ ...quorum.protocol, ...variant }), violates)

export const tokenCases: ReadonlyArray<Case> = [
  tokens("two ballots, two commands executed twice", { duplicates: 2 }),
  tokens("two ballots, healed leases, a command executed twice", { heals: true, duplicates: 1 }),
  tokens("two ballots, counters passed on", { floors: true }),
  tokens("three ballots", { attempts: 3 }),
  tokens("no write-back", { writeBack: "never" }, "tokens are unique"),
  tokens("write-back without looking", { writeBack: "always" }, "tokens are unique"),
  tokens("write-back counted where the grant was not", { onlyUsed: false }, "tokens are unique"),
  tokens(
    "vote without its counter, a command executed twice",
    { counterInLock: false, duplicates: 1 },
    "tokens are unique"
  )
]

const memory = (title: string, variant: Partial<quorumMemory.Variant>, violates?: string): Case =>
  make(title, quorumMemory.model({ ...quorumMemory.protocol, ...variant }), violates)

export const memoryCases: ReadonlyArray<Case> = [
  memory("two ballots, two restarts", { restarts: 2 }),
  memory("three ballots, exact clocks", { attempts: 3, clockError: 0, quarantine: 3 }),
  memory("counter without clock, no quarantine", { hybrid: false, quarantine: 0 }, "tokens are unique"),
  memory("counter without clock, full quarantine", { hybrid: false }, "tokens are unique"),
  memory("no quarantine", { quarantine: 0 }, "tokens are unique"),
  memory("quarantine shorter than an attempt", { quarantine: 1 }, "tokens are unique")
]

const lease = (title: string, variant: Partial<quorumLease.Variant>, violates?: string): Case =>
  make(title, quorumLease.model({ ...quorumLease.protocol, ...variant }), violates)

const rounds = { ballots: [0, 0, 1], ttl: 1, quarantine: 1, renewals: 0, restarts: 0 }

export const leaseCases: ReadonlyArray<Case> = [
  lease("two holders, two renewals, a restart", { renewals: 2 }),
  lease("two holders, one in two rounds, a restart", { ...rounds, restarts: 1 }),
  lease("three holders", { ...rounds, ballots: [0, 1, 2] }),
  lease("valid from when it was decided", { validFrom: "decision" }, "one inside"),
  lease("no quarantine", { quarantine: 0 }, "one inside"),
  lease("quarantine shorter than the ttl", { quarantine: 1 }, "one inside"),
  lease("a voter in quarantine is healed", { renewals: 2, healsInQuarantine: true }, "one inside"),
  lease("extend makes votes", { extendCreates: true }, "one inside"),
  lease("votes taken back by holder", { ...rounds, takeBackBy: "holder" }, "one inside"),
  lease("an earlier round overtakes a later one", { ...rounds, earlierRoundsOvertake: true }, "one inside")
]

const waiting = (
  title: string,
  setting: Partial<queue.Setting>,
  rules: Partial<queue.Rules> = {},
  violates?: string
): Case => {
  const none = { waiters: [0, 0, 1], late: 0, twice: 0, interrupts: 0, pauses: 0, deaths: 0 }
  return make(title, queue.model({ ...queue.rules, ...rules }, { ...none, ...setting }), violates)
}

/** Two permits: two that want one, and one that wants both. */
const semaphore = { waiters: [0, 0, 1], limit: 2, wishes: [{ permits: 1 }, { permits: 1 }, { permits: 2 }] }

/** A reader, what it asks for to become a writer, and another writer. */
const upgrade = {
  waiters: [0, 0, 1],
  limit: 2,
  wishes: [{ permits: 1 }, { permits: 1, hasHeadStart: true, within: 0 }, { permits: 2 }]
}

export const queueCases: ReadonlyArray<Case> = [
  waiting("three waiters, one message late or lost, one interrupted", { late: 1, interrupts: 1 }),
  waiting("three waiters, one interrupted, one client pauses", { interrupts: 1, pauses: 1 }),
  waiting("three waiters, one client dies, one pauses", { deaths: 1, pauses: 1 }),
  waiting("three waiters, a command executed twice", { twice: 1 }),
  waiting("two waiters, two messages late or lost", { waiters: [0, 1], late: 2 }),
  waiting("two waiters, one message late or lost, one interrupted, one pauses", {
    waiters: [0, 1],
    late: 1,
    interrupts: 1,
    pauses: 1
  }),
  waiting("a push counts from when it arrives", { pauses: 1 }, { pushCountsFrom: "receipt" }, "within the limit"),
  waiting(
    "an offer that a heartbeat tells of counts from the reply",
    { late: 1, pauses: 1 },
    { pollCountsFrom: "receipt" },
    "within the limit"
  ),
  waiting("no poll", { late: 1 }, { heartbeatPolls: false }, "liveness"),
  waiting("heartbeats prolong offers", { late: 1 }, { heartbeatRefreshesOffers: true }, "liveness"),
  waiting("offers do not expire", { late: 1 }, { offersExpire: false }, "liveness"),
  waiting(
    "abandon does not grant to the next",
    { interrupts: 1 },
    { abandonedGrant: "removed" },
    "never free while somebody waits"
  ),
  waiting(
    "abandon leaves the grant",
    { interrupts: 1 },
    { abandonedGrant: "kept" },
    "who has left has left nothing"
  ),
  waiting("who asks again has lost the place", { pauses: 1 }, { placeIsKept: false }, "places are kept"),
  waiting("a semaphore of two, one wants both, one message late or lost", { ...semaphore, late: 1 }),
  waiting("a semaphore of two, one wants both, one interrupted", { ...semaphore, interrupts: 1 }),
  waiting("a reader becomes a writer while one waits, one interrupted", { ...upgrade, interrupts: 1 }),
  waiting("a reader becomes a writer while one waits, one message late or lost", { ...upgrade, late: 1 }),
  waiting("holders are counted, not permits", semaphore, { counts: "holders" }, "within the limit"),
  waiting("who fits passes the head", semaphore, { headIsPassed: true }, "nobody is passed"),
  waiting("a reader becomes a writer after those who wait", upgrade, { headStarts: false }, "liveness"),
  waiting(
    "who comes to stand first has to wait for the next look",
    { ...semaphore, wishes: [{ permits: 1 }, { permits: 2 }, { permits: 1, hasHeadStart: true }] },
    { newHeadIsGranted: false },
    "never free while somebody waits"
  )
]
