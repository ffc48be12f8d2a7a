import * as LockError from "@effect-lock/core/LockError"
import * as LockStore from "@effect-lock/core/LockStore"
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Scope from "effect/Scope"
import * as RedisClient from "../RedisClient.ts"
import type { NoAnswer, Voter } from "./quorumBallot.ts"
import { answerOf } from "./quorumBallot.ts"
import * as scripts from "./quorumScripts.ts"
import type { Script } from "./scripts.ts"

/** @internal */
export interface Settings {
  readonly voterTimeout: number
  readonly commandTimeout: number
  /** How long a voter that may have forgotten votes gives none; 0: not at all. */
  readonly quarantine: number
  readonly slack: number
  /** Whether a quorum that nobody has used may be used at once. */
  readonly assumeFresh: boolean
}

/**
 * What a voter says of itself.
 *
 * @internal
 */
interface Status {
  readonly process: string
  readonly mark: "none" | "own" | "other"
  readonly withheldFor: number
  /** The voter's clock minus ours. */
  readonly clockOffset: number
}

/**
 * A voter on a server of its own: connected in the background for as long as it takes, asked by nobody while it does not
 * answer, and probed until it does.
 *
 * @internal
 */
export class ServerVoter implements Voter {
  readonly name: string
  readonly mark: string
  readonly keyOf: (key: string) => string
  readonly recovered: Effect.Effect<void>
  trouble: NoAnswer | undefined = { _tag: "NoAnswer", reason: "unreachable", detail: "not connected yet" }
  status: Status | undefined = undefined
  lastProcess: string | undefined = undefined
  client: RedisClient.RedisClient | undefined = undefined
  /** Done when the first try to connect has ended, well or not. */
  readonly tried: Deferred.Deferred<void> = Deferred.makeUnsafe()
  readonly #up = Latch.makeUnsafe(false)
  readonly #troubled = Latch.makeUnsafe(true)

  constructor(name: string, keyPrefix: string) {
    this.name = name
    this.mark = `${keyPrefix}:voter`
    this.keyOf = (key) => `${keyPrefix}:quorum:${key}`
    this.recovered = this.#up.await
  }

  /** Returns when there may be something to do about it. */
  get troubled(): Effect.Effect<void> {
    return this.#troubled.await
  }

  run: RedisClient.RedisClient["run"] = (script, keys, args, onUnanswered) =>
    Effect.suspend(() =>
      this.client === undefined
        ? this.#unconnected(script.name)
        : Effect.tapError(this.client.run(script, keys, args, onUnanswered), ({ detail, limit, reason }) =>
          Effect.sync(() => {
            if (reason === "Timeout") {
              this.suspect({ _tag: "NoAnswer", reason: "timeout", detail: `no answer within ${limit} ms` })
            } else if (reason !== "Refused") {
              this.suspect({ _tag: "NoAnswer", reason: "unreachable", detail: detail ?? "no connection" })
            }
          }))
    )

  // That a list takes long says nothing of the voter.
  list: Voter["list"] = (begin) =>
    Effect.suspend(() =>
      this.client === undefined
        ? this.#unconnected("list")
        : this.client.scan(`${RedisClient.escapeGlob(begin)}*`)
    )

  #unconnected(operation: string): Effect.Effect<never, LockError.LockStoreError> {
    const detail = this.trouble?.detail
    return Effect.fail(new LockError.LockStoreError({ store: "redis", operation, reason: "Unavailable", detail }))
  }

  suspect(trouble: NoAnswer): void {
    if (this.trouble !== undefined) return
    this.trouble = trouble
    this.#up.closeUnsafe()
    this.#troubled.openUnsafe()
  }

  /** It may be another process than before. */
  recheck(): void {
    this.#troubled.openUnsafe()
  }

  recover(): void {
    this.trouble = undefined
    this.#troubled.closeUnsafe()
    this.#up.openUnsafe()
  }
}

/**
 * Connects all voters and keeps them connected until the scope closes. Returns when all have been tried, or when the others
 * suffice; fails when no majority can be reached.
 *
 * @internal
 */
export const connect = Effect.fnUntraced(function*(
  voters: ReadonlyArray<ServerVoter>,
  open: (voter: ServerVoter) => Effect.Effect<RedisClient.RedisClient, LockError.LockStoreError, Scope.Scope>,
  listen: (
    voter: ServerVoter,
    client: RedisClient.RedisClient,
    version: number
  ) => Effect.Effect<void, LockError.LockStoreError, Scope.Scope>,
  onDoubt: () => void,
  settings: Settings,
  clock: Clock.Clock
): Effect.fn.Return<void, LockError.LockStoreError, Scope.Scope> {
  const scope = yield* Scope.Scope
  const quorum = Math.floor(voters.length / 2) + 1
  let known = false

  const ask = (voter: ServerVoter, client: RedisClient.RedisClient, mode: "look" | "initialize" | "known") =>
    Effect.suspend(() => {
      const sentAt = LockStore.nowUnsafe(clock)
      return Effect.flatMap(client.run(scripts.check, [voter.mark], [settings.quarantine, mode]), (reply) => {
        const [process, time, mark, rest] = reply as readonly [string, string, 0 | 1 | 2, string]
        const took = LockStore.elapsedUnsafe(sentAt, clock)
        const isAnother = voter.lastProcess !== undefined && voter.lastProcess !== process
        voter.lastProcess = process
        // A majority may have forgotten a lease: its next renewal tells.
        if (isAnother) onDoubt()
        const twin = voters.find((other) => other !== voter && other.status?.process === process)
        voter.status = {
          process,
          mark: mark === 0 ? "none" : mark === 1 ? "own" : "other",
          withheldFor: Number(rest),
          clockOffset: Number(time) - (sentAt.wall + took / 2)
        }
        return twin === undefined
          ? Effect.succeed(took)
          : Effect.fail(refused(`the same server as voter ${twin.name}: a voter has to be a server of its own`))
      })
    })

  const join = (voter: ServerVoter, inner: Scope.Closeable) =>
    Effect.gen(function*() {
      const client = yield* open(voter)
      const version = yield* checkServer(`Quorum voter ${voter.name}`, client)
      const load = ({ source }: Script) => Effect.ignore(client.command("SCRIPT", "LOAD", source))
      yield* Effect.all([listen(voter, client, version), ...scripts.all.map(load)], {
        concurrency: "unbounded",
        discard: true
      })
      yield* ask(voter, client, known ? "known" : "look")
      voter.client = client
    }).pipe(
      Scope.provide(inner),
      Effect.timeoutOrElse({
        duration: settings.commandTimeout,
        orElse: () => Effect.fail(timedOut("connect", settings.commandTimeout))
      }),
      Effect.onError((cause) => {
        voter.status = undefined
        return Scope.close(inner, Exit.failCause(cause))
      })
    )

  /** Asked on until it answers as fast as it has to: an answer that comes late has not recovered. */
  const probe = (voter: ServerVoter): Effect.Effect<boolean> =>
    Effect.gen(function*() {
      const took = voter.client === undefined
        ? yield* Effect.as(Effect.suspend(() => join(voter, Scope.forkUnsafe(scope))), 0)
        : yield* ask(voter, voter.client, known ? "known" : "look")
      if (took > settings.voterTimeout) {
        return yield* Effect.fail(slow(took, settings.voterTimeout))
      }
      if (voter.trouble !== undefined && known) {
        yield* log(voter, Effect.logInfo(`Quorum voter ${voter.name} answers again`))
      }
      voter.recover()
      return true
    }).pipe(
      Effect.catchCause((cause) => {
        const answer = answerTo(cause)
        const isNew = voter.trouble === undefined
        voter.suspect(answer)
        voter.trouble = answer
        return isNew ? Effect.as(warn(voter), false) : Effect.succeed(false)
      })
    )

  const keep = (voter: ServerVoter): Effect.Effect<never> =>
    Effect.gen(function*() {
      let delay = 0
      const first = yield* probe(voter)
      if (!first) yield* warn(voter)
      Deferred.doneUnsafe(voter.tried, Effect.void)
      while (true) {
        if (voter.trouble === undefined) {
          delay = 50
          // The mark must not run out while somebody may hold a lease.
          yield* Effect.timeoutOption(
            voter.troubled,
            settings.quarantine === 0 ? 60_000 : Math.max(1000, settings.quarantine)
          )
          if (voter.trouble !== undefined) yield* warn(voter)
        } else {
          yield* Effect.sleep(delay)
          delay = Math.min(Math.max(50, 2 * delay), 1000)
        }
        yield* probe(voter)
      }
    })

  yield* Effect.forEach(voters, (voter) => Effect.forkIn(keep(voter), scope, { startImmediately: true }), {
    discard: true
  })
  const allTried = Effect.forEach(voters, ({ tried }) => Deferred.await(tried), { discard: true })
  const present = () => voters.filter(({ trouble }) => trouble === undefined)
  const mayVote = () => present().filter(({ status }) => status!.withheldFor === 0)
  yield* Effect.timeoutOption(allTried, settings.voterTimeout)
  // Only all of them together can tell first use from lost memory.
  if (mayVote().length < quorum) yield* allTried
  if (present().length < quorum) {
    const outcomes = voters.map(({ name, trouble }) =>
      `${name}: ${trouble === undefined ? "connected" : `${trouble.reason} (${trouble.detail})`}`
    )
    return yield* Effect.fail(
      new LockError.LockStoreError({
        store: "redis-quorum",
        operation: "startup",
        reason: "Unavailable",
        detail: outcomes.join("; ")
      })
    )
  }
  known = true
  yield* checkClocks(voters, settings.slack)
  if (mayVote().length === voters.length) return
  const isFirstUse = settings.assumeFresh && present().length === voters.length &&
    voters.every(({ status }) => status!.mark === "none")
  if (!isFirstUse) {
    const withheld = present().filter(({ status }) => status!.withheldFor > 0)
    yield* Effect.forEach(withheld, (voter) =>
      log(
        voter,
        Effect.logWarning(
          `Quorum voter ${voter.name} restarted and may have forgotten votes: ` +
            `its vote is withheld for ${voter.status!.withheldFor} ms more`
        )
      ), { discard: true })
    return
  }
  yield* Effect.forEach(voters, (voter) => answerOf(Effect.asVoid(ask(voter, voter.client!, "initialize"))), {
    concurrency: "unbounded",
    discard: true
  })
})

const answerTo = (cause: Cause.Cause<LockError.LockStoreError>): NoAnswer => {
  const error = Cause.squash(cause)
  const isStoreError = error instanceof LockError.LockStoreError
  const reason = !isStoreError || error.reason === "Unavailable"
    ? "unreachable"
    : error.reason === "Timeout"
    ? "timeout"
    : "refused"
  const detail = isStoreError
    ? error.detail ?? (error.limit === undefined ? "no connection" : `no answer within ${error.limit} ms`)
    : String(error)
  return { _tag: "NoAnswer", reason, detail }
}

const log = (voter: ServerVoter, message: Effect.Effect<void>): Effect.Effect<void> =>
  Effect.annotateLogs(message, { module: "effect-lock", voter: voter.name })

const warn = (voter: ServerVoter): Effect.Effect<void> =>
  Effect.suspend(() =>
    voter.trouble === undefined
      ? Effect.void
      : log(voter, Effect.logWarning(`Quorum voter ${voter.name} does not answer: ${voter.trouble.detail}`))
  )

const checkClocks = (voters: ReadonlyArray<ServerVoter>, slack: number): Effect.Effect<void> => {
  const offsets = voters.flatMap(({ name, status }) =>
    status === undefined ? [] : [[name, status.clockOffset] as const]
  )
    .toSorted(([, a], [, b]) => a - b)
  const [first, last] = [offsets[0], offsets.at(-1)]
  if (first === undefined || last === undefined || last[1] - first[1] < slack / 2) return Effect.void
  return Effect.logWarning(
    `The clocks of quorum voters ${first[0]} and ${last[0]} differ by ${Math.round(last[1] - first[1])} ms: ` +
      `fencing tokens are safe up to slack of ${slack} ms`
  ).pipe(Effect.annotateLogs({ module: "effect-lock" }))
}

/**
 * Finds out at start what would otherwise be found out under load. Returns the server's major version, 5 if it is not known.
 *
 * @internal
 */
export const checkServer = Effect.fnUntraced(function*(
  name: string,
  client: RedisClient.RedisClient
): Effect.fn.Return<number, LockError.LockStoreError> {
  // A managed server may not allow INFO: then nothing is known, and nothing is wrong.
  const info = String(yield* Effect.catch(client.command("INFO"), () => Effect.succeed("")))
  const field = (name: string) => new RegExp(`^${name}:(.*?)\\r?$`, "m").exec(info)?.[1]
  const version = field("redis_version")
  if (version !== undefined && Number.parseInt(version, 10) < 5) {
    return yield* Effect.fail(refused(`server version ${version} is too old: 5.0 or later is needed`))
  }
  const policy = field("maxmemory_policy")
  if (policy !== undefined && policy !== "noeviction") {
    yield* Effect.logWarning(
      `${name} may evict locks under memory pressure: maxmemory-policy is ${policy}; set it to noeviction`
    ).pipe(Effect.annotateLogs({ module: "effect-lock" }))
  }
  return version === undefined ? 5 : Number.parseInt(version, 10)
})

const refused = (detail: string): LockError.LockStoreError =>
  new LockError.LockStoreError({ store: "redis-quorum", operation: "startup", reason: "Refused", detail })

const slow = (took: number, limit: number): LockError.LockStoreError =>
  new LockError.LockStoreError({
    store: "redis-quorum",
    operation: "check",
    reason: "Timeout",
    limitName: "voterTimeout",
    limit,
    detail: `answers after ${Math.round(took)} ms, later than voterTimeout of ${limit} ms`
  })

const timedOut = (operation: string, limit: number): LockError.LockStoreError =>
  new LockError.LockStoreError({ store: "redis-quorum", operation, reason: "Timeout", limit })
