/**
 * The same random commands on the memory store, the readable reference of the protocol, and on the Redis scripts: every
 * answer has to be the same, and so has the state after each command.
 *
 * A failure prints its shrunk commands and how to run them again. `DIFFERENTIAL_SEED` repeats all sequences,
 * `DIFFERENTIAL_REPLAY` the shrunk one, and `DIFFERENTIAL_SEQUENCES` says how many there are.
 */
import { type LockError, LockStore } from "@effect-lock/core"
import { RedisLockStore } from "@effect-lock/redis"
import { LockStoreSuite, RedisServer } from "@effect-lock/test-utils"
import { assert, layer } from "@effect/vitest"
import { Arbitrary, Cause, Context, Effect, Layer, Schedule, Schema } from "effect"
import * as Crypto from "node:crypto"
import { patience } from "./support/client.ts"

type Store = LockStore.PermitStore["Service"]

const sequences = Number(process.env["DIFFERENTIAL_SEQUENCES"] ?? 1000)
const seed = process.env["DIFFERENTIAL_SEED"] ?? String(Crypto.randomInt(2 ** 31))
const replay = process.env["DIFFERENTIAL_REPLAY"]

const Server = RedisServer.RedisServer.layer()

// No heartbeat comes in between, and an offer lives as long as the longest ttl: nothing ends by itself.
const client = () =>
  RedisServer.RedisServer.useSync(({ url }) => RedisLockStore.layer({ url, heartbeat: "20 seconds", ...patience }))
    .pipe(
      Layer.unwrap,
      Layer.provide(Server)
    )

const ids = ["a", "b", "c", "d"] as const
const keys = ["semaphore", "mutex"] as const

const Key = Schema.Literals(keys)
const Id = Schema.Literals(ids)
/** Far enough apart to be told apart by the time that is left. */
const Ttl = Schema.Literals([20_000, 40_000, 60_000])
/** What is added to the token that the holder has, or had last. */
const Off = Schema.Literals([0, 0, 0, 0, 0, 0, -1, 1])

const Attempt = Schema.Struct({
  verb: Schema.Literal("attempt"),
  key: Key,
  id: Id,
  wait: Schema.Literals([true, true, true, false]),
  permits: Schema.Literals([1, 1, 2, 2, 3, 3, 4]),
  ttl: Ttl,
  /** A step is more than any sequence takes. */
  priority: Schema.Literals([0, 0, 0, 0, 100, -100, 1000, "first"]),
  maxWaiters: Schema.Literals([9, 9, 9, 0, 1, 2]),
  /** How far above the highest token known. */
  floor: Schema.Literals([0, 0, 0, 1000]),
  label: Schema.Literals(["", "x y"])
})
const Renew = Schema.Struct({ verb: Schema.Literal("renew"), key: Key, id: Id, off: Off, ttl: Ttl })
const Release = Schema.Struct({
  verb: Schema.Literal("release"),
  key: Key,
  id: Id,
  off: Off,
  keepFor: Schema.Literals([0, 0, 0, 10_000])
})
const Abandon = Schema.Struct({ verb: Schema.Literal("abandon"), key: Key, id: Id })
const Takeover = Schema.Struct({ ...Attempt.fields, verb: Schema.Literal("takeover") })
/** Sets a lease aside and, sooner or later, exchanges it. */
const Transfer = Schema.Struct({ verb: Schema.Literal("transfer"), key: Key, id: Id, off: Off })
const Adopt = Schema.Struct({ ...Attempt.fields, verb: Schema.Literal("adopt"), off: Off })
const Shrink = Schema.Struct({
  verb: Schema.Literal("shrink"),
  key: Key,
  id: Id,
  off: Off,
  permits: Schema.Literals([1, 2, 3])
})
const SetLimit = Schema.Struct({
  verb: Schema.Literal("set limit"),
  key: Key,
  id: Id,
  limit: Schema.Literals([1, 2, 3, 4, 5, 6, 8])
})
const Watch = Schema.Struct({ verb: Schema.Literal("watch"), key: Key, id: Id, off: Off })
/** Kept for a time that is over before anything else happens. */
const KeepBriefly = Schema.Struct({ verb: Schema.Literal("keep briefly"), key: Key, id: Id })
/** A holder that dies, and whose time is over before anything happens but that somebody queues. */
const Die = Schema.Struct({ verb: Schema.Literal("die"), key: Key, id: Id, waiter: Id })

type Command =
  | typeof Attempt.Type
  | typeof Renew.Type
  | typeof Release.Type
  | typeof Abandon.Type
  | typeof Takeover.Type
  | typeof Transfer.Type
  | typeof Adopt.Type
  | typeof Shrink.Type
  | typeof SetLimit.Type
  | typeof Watch.Type
  | typeof KeepBriefly.Type
  | typeof Die.Type

const times = <A>(count: number, value: A): Array<A> => Array.from({ length: count }, () => value)

const Commands: Arbitrary.Arbitrary<ReadonlyArray<Command>> = Arbitrary.array(
  Arbitrary.schema(
    Schema.Union([
      ...times(48, Attempt),
      ...times(12, Renew),
      ...times(24, Release),
      ...times(6, Abandon),
      ...times(3, Takeover),
      ...times(5, Transfer),
      ...times(5, Adopt),
      ...times(6, Shrink),
      ...times(8, SetLimit),
      ...times(8, Watch),
      ...times(4, KeepBriefly),
      Die
    ])
  ),
  { maxLength: 80 }
)

/** One of the two stores, with what is known of its tokens. */
class Side {
  readonly storeOf: (id: string) => Store
  readonly prefix: string
  readonly signals = new Map<string, Effect.Effect<LockStore.Signal, LockError.LockStoreError>>()
  readonly wishes = new Map<string, Wish>()
  readonly news: Array<string> = []
  readonly tokens = new Map<string, number>()
  highest = 0

  constructor(storeOf: (id: string) => Store, prefix: string) {
    this.storeOf = storeOf
    this.prefix = prefix
  }

  learn(key: string, id: string, token: number): void {
    this.tokens.set(`${key} ${id}`, token)
    this.highest = Math.max(this.highest, token)
  }

  hear(news: LockStore.News): void {
    if (news._tag !== "InDoubt" && news.holderId.startsWith(this.prefix)) {
      this.news.push(`${news._tag} ${news.holderId.slice(this.prefix.length)}`)
    }
  }

  /** `<key> <id>` */
  nameOf(holderId: string): string {
    return holderId.slice(this.prefix.length).replace("-", " ")
  }

  /** Unique: a client that has met one before takes it for the same holder of the same key. */
  holderId(key: string, id: string): string {
    return `${this.prefix}${key}-${id}`
  }

  held(key: string, id: string, off = 0): LockStore.Held {
    return {
      key: this.prefix + key,
      holderId: this.holderId(key, id),
      token: (this.tokens.get(`${key} ${id}`) ?? 1) + off
    }
  }

  request({ floor, id, key, label, maxWaiters = Infinity, permits, priority = 0, ttl, wait }: Wish): LockStore.Request {
    return {
      key: this.prefix + key,
      holderId: this.holderId(key, id),
      ttl,
      permits: key === "mutex" ? 1 : permits,
      limit: declaredBy(key, id),
      wait,
      priority: priority === "first" ? Infinity : priority,
      maxWaiters,
      floor: floor === 0 ? 0 : this.highest + floor,
      metadata: label === "" ? {} : { label }
    }
  }

  takeover(wish: Wish): Effect.Effect<Answer, LockError.LockStoreError> {
    return Effect.map(this.storeOf(wish.id).takeover(this.request(wish)), ({ token, ttl }) => {
      this.learn(wish.key, wish.id, token)
      return { answer: "Granted", token, ttl }
    })
  }

  adopt(ticket: LockStore.Held, wish: Wish): Effect.Effect<Answer, LockError.LockStoreError> {
    return Effect.map(this.storeOf(wish.id).adopt(ticket, this.request(wish)), (adoption) => {
      if (adoption._tag === "Refused") return { answer: "Refused", detail: adoption.reason }
      const { token, ttl } = adoption.grant
      this.learn(wish.key, wish.id, token)
      return { answer: "Granted", token, ttl }
    })
  }

  attempt(wish: Wish): Effect.Effect<Answer> {
    const { floor, id, key } = wish
    return this.storeOf(id).attempt(this.request(wish)).pipe(
      Effect.map((attempt): Answer => {
        // Who may not queue is not left in the queue.
        if (attempt._tag === "OtherLimit") this.signals.delete(`${key} ${id}`)
        switch (attempt._tag) {
          case "Granted": {
            assert.isTrue(
              floor === 0 || attempt.grant.token > this.highest + floor ||
                this.tokens.get(`${key} ${id}`) === attempt.grant.token,
              "above the floor"
            )
            this.signals.delete(`${key} ${id}`)
            this.learn(key, id, attempt.grant.token)
            return { answer: "Granted", token: attempt.grant.token, ttl: attempt.grant.ttl }
          }
          case "Queued": {
            // Asked again, it waits for what it asked for first.
            if (!this.signals.has(`${key} ${id}`)) this.wishes.set(`${key} ${id}`, wish)
            this.signals.set(`${key} ${id}`, attempt.signal)
            return { answer: "Queued", ...attempt.standing }
          }
          case "Refused":
          case "QueueFull":
            return { answer: attempt._tag, ...attempt.standing }
          case "OtherLimit":
            return { answer: "OtherLimit", limit: attempt.limit }
        }
      }),
      Effect.catch(({ detail, reason }) => Effect.succeed<Answer>({ answer: reason, detail: detail ?? "" }))
    )
  }

  abandon(key: string, id: string): Effect.Effect<Answer, LockError.LockStoreError> {
    return Effect.map(this.storeOf(id).abandon(this.prefix + key, this.holderId(key, id)), (standing) => {
      this.signals.delete(`${key} ${id}`)
      return { answer: "Abandoned", ...standing }
    })
  }

  /** Any command makes a store look at the clock. */
  pump(key: string): Effect.Effect<Answer, LockError.LockStoreError> {
    return Effect.map(
      this.storeOf("a").renew({ key: this.prefix + key, holderId: "nobody", token: 1 }, 1),
      (answer) => ({ answer })
    )
  }

  inspect(key: string): Effect.Effect<LockStore.KeyState, LockError.LockStoreError> {
    return Effect.tap(this.storeOf("b").inspect(this.prefix + key), ({ holders }) =>
      Effect.sync(() => {
        for (const { holderId, token } of holders) this.learn(key, this.nameOf(holderId).slice(key.length + 1), token)
      }))
  }
}

interface Wish {
  readonly key: string
  readonly id: string
  readonly wait: boolean
  readonly permits: number
  readonly ttl: number
  readonly floor: number
  readonly label: string
  readonly priority?: number | "first"
  readonly maxWaiters?: number
}

interface Answer {
  readonly answer: string
  readonly detail?: string
  readonly token?: number
  readonly ttl?: number
  readonly limit?: number
  readonly isWanted?: boolean
  readonly holders?: LockStore.Standing["holders"]
  readonly waiters?: LockStore.KeyState["waiters"]
  readonly position?: number
  readonly queueLength?: number
}

/** One of them always says another limit than the others. */
const declaredBy = (key: string, id: string): number => key === "mutex" ? 1 : id === "d" ? 3 : 5

/** Runs one sequence on both; dies at the first difference. */
const compare = Effect.fnUntraced(function*(commands: ReadonlyArray<Command>) {
  const [one, other] = (yield* LockStoreSuite.Subject).permitClients!
  const memory = Context.get(yield* Layer.build(Layer.fresh(LockStore.layerMemory)), LockStore.PermitStore)
  const prefix = `${Crypto.randomUUID()}:`
  const reference = new Side(() => memory, prefix)
  const scripts = new Side((id) => id === "a" || id === "b" ? one : other, prefix)
  const sides = [reference, scripts] as const
  yield* memory.onNews((news) => reference.hear(news))
  for (const store of [one, other]) yield* store.onNews((news) => scripts.hear(news))
  /** The tickets of each key, the last one first. */
  const tickets = new Map<string, Array<string>>(keys.map((key) => [key, []]))
  const pairs = new Map<string, Map<number, number>>(keys.map((key) => [key, new Map()]))

  /** Tokens of a key grow on both sides, grant by grant: each has its counterpart. */
  const pair = (key: string, expected: number, actual: number) => {
    const known = pairs.get(key)!
    const before = known.get(expected)
    if (before === undefined) {
      for (const [a, b] of known) {
        assert.strictEqual(Math.sign(actual - b), Math.sign(expected - a), `order of tokens ${expected} and ${actual}`)
      }
      known.set(expected, actual)
    } else assert.strictEqual(actual, before, `token for ${expected}`)
  }

  const same = (what: string, key: string, expected: Answer, actual: Answer) => {
    const plain = ({ holders, token: _, waiters, ...rest }: Answer) => ({
      ...rest,
      holders: holders?.map(({ holderId, metadata, permits }) => ({ holderId, metadata, permits })).toSorted(byId),
      waiters: waiters?.map(({ holderId, metadata, permits }) => ({ holderId, metadata, permits }))
    })
    assert.deepStrictEqual(plain(actual), plain(expected), `${what}: ${show(plain(actual), plain(expected))}`)
    if (expected.token !== undefined) pair(key, expected.token, actual.token!)
    for (const [i, holder] of expected.holders?.toSorted(byId).entries() ?? []) {
      const twin = actual.holders!.toSorted(byId)[i]!
      pair(key, holder.token, twin.token)
      assert.closeTo(twin.timeLeft, holder.timeLeft, 4000, `${what}: time left of ${holder.holderId}`)
    }
  }

  const both = Effect.fnUntraced(function*(
    what: string,
    key: string,
    run: (side: Side) => Effect.Effect<Answer, LockError.LockStoreError>
  ) {
    const [expected, actual] = yield* Effect.all([run(reference), run(scripts)])
    same(what, key, expected, actual)
    return expected
  })

  /** The scripts do not ask whether who takes or adopts waits, because holder ids are not used again. */
  const forgotten = Effect.fnUntraced(function*(what: string, key: string, id: string) {
    if (reference.signals.has(`${key} ${id}`)) yield* both(what, key, (side) => side.abandon(key, id))
  })

  const execute = Effect.fnUntraced(function*(command: Command) {
    const { id, key, verb } = command
    const what = JSON.stringify(command)
    switch (verb) {
      case "attempt":
        yield* both(what, key, (side) => side.attempt(command))
        break
      case "renew":
        yield* both(what, key, (side) =>
          Effect.map(
            side.storeOf(id).renew(side.held(key, id, command.off), command.ttl),
            (answer) => ({ answer })
          ))
        break
      case "release":
        yield* both(what, key, (side) =>
          Effect.map(
            side.storeOf(id).release(side.held(key, id, command.off), command.keepFor),
            (answer) => ({ answer })
          ))
        break
      case "abandon":
        yield* both(what, key, (side) => side.abandon(key, id))
        break
      case "takeover": {
        yield* forgotten(what, key, id)
        const before = yield* reference.inspect(key)
        yield* both(what, key, (side) => side.takeover(command))
        for (const { holderId } of before.holders) {
          const evicted = reference.nameOf(holderId).slice(key.length + 1)
          if (evicted !== id && !evicted.includes("-")) yield* both(what, key, (side) => side.abandon(key, evicted))
        }
        break
      }
      case "transfer": {
        const ticket = `${id}-${tickets.get(key)!.length}`
        // Sent twice.
        for (const again of ["", ", again"]) {
          yield* both(what + again, key, (side) =>
            Effect.map(
              side.storeOf(id).transfer(side.held(key, id, command.off), side.holderId(key, ticket)),
              ({ _tag }) => ({ answer: _tag })
            ))
        }
        tickets.get(key)!.unshift(ticket)
        break
      }
      case "adopt": {
        yield* forgotten(what, key, id)
        const ticket = tickets.get(key)![0] ?? "none"
        yield* both(what, key, (side) => side.adopt(side.held(key, ticket, command.off), command))
        break
      }
      case "shrink":
        yield* both(what, key, (side) =>
          Effect.map(
            side.storeOf(id).shrink(side.held(key, id, command.off), command.permits),
            (answer) => ({ answer })
          ))
        break
      case "set limit":
        yield* both(what, key, (side) =>
          Effect.map(
            side.storeOf(id).setLimit(prefix + key, declaredBy(key, id), command.limit),
            ({ _tag, ...rest }) => ({ answer: _tag, ...rest })
          ))
        break
      case "watch":
        yield* both(what, key, (side) =>
          Effect.map(
            side.storeOf(id).watch(side.held(key, id, command.off)),
            ({ _tag, ...rest }) => ({ answer: _tag, ...rest })
          ))
        break
      case "keep briefly": {
        const { answer } = yield* both(
          what,
          key,
          (side) => Effect.map(side.storeOf(id).release(side.held(key, id), 15), (answer) => ({ answer }))
        )
        if (answer === "Done") yield* Effect.sleep(20)
        yield* both(what, key, (side) => side.pump(key))
        break
      }
      case "die": {
        const { waiter } = command
        const wish = { key, permits: 2, floor: 0, label: "" } as const
        const started = performance.now()
        const expected = yield* Effect.all(
          sides.map((side) =>
            Effect.all([
              side.attempt({ ...wish, id, wait: false, ttl: 200 }),
              side.attempt({ ...wish, id: waiter, wait: true, ttl: 60_000 })
            ])
          )
        )
        // Whether somebody queues before the time is over is a matter of luck then.
        if (performance.now() - started > 150) return "too slow"
        same(what, key, expected[0]![0], expected[1]![0])
        same(what, key, expected[0]![1], expected[1]![1])
        if (expected[0]![0].answer === "Granted") yield* Effect.sleep(210)
        yield* both(what, key, (side) => side.pump(key))
        break
      }
    }
    return "compared"
  })

  /** Who was granted while waiting has to hear of it, with the token that `inspect` shows. */
  const listen = Effect.fnUntraced(function*(what: string, key: string, { holders, waiters }: LockStore.KeyState) {
    const told = Effect.fnUntraced(function*(name: string, tag: LockStore.Signal["_tag"]) {
      const signals = sides.map((side) => side.signals.get(name))
      if (signals[0] === undefined || signals[1] === undefined) return
      for (const [i, side] of sides.entries()) {
        const signal = yield* signals[i]!.pipe(
          Effect.timeoutOrElse({
            duration: "20 seconds",
            orElse: () => Effect.die(new Error(`${what}: ${name} was not told ${tag}`))
          })
        )
        assert.strictEqual(signal._tag, tag, `${what}: what ${name} was told`)
        if (signal._tag === "Granted") {
          assert.strictEqual(signal.grant.token, side.tokens.get(name), `${what}: the token that ${name} was told of`)
        }
        side.signals.delete(name)
      }
    })
    for (const { holderId } of holders) yield* told(reference.nameOf(holderId), "Granted")
    // Who is not in the queue any more asked for more than there are.
    const queued = new Set(waiters.map(({ holderId }) => reference.nameOf(holderId)))
    for (const name of Array.from(reference.signals.keys())) {
      if (!name.startsWith(`${key} `) || queued.has(name)) continue
      yield* told(name, "LookAgain")
      const { answer } = yield* both(`${what}, then ${name} again`, key, (side) => side.attempt(side.wishes.get(name)!))
      assert.strictEqual(answer, "OtherLimit", `${what}: ${name} was dropped`)
    }
  })

  for (const [i, command] of commands.entries()) {
    if ((yield* execute(command)) === "too slow") return
    for (const key of keys) {
      const what = `${i}. ${JSON.stringify(command)}, then inspect ${key}`
      const [expected, actual] = yield* Effect.all([reference.inspect(key), scripts.inspect(key)])
      same(what, key, { answer: "", ...expected }, { answer: "", ...actual })
      yield* listen(what, key, expected)
    }
  }
  const sorted = (side: Side) => side.news.toSorted().join()
  yield* Effect.sync(() => sorted(scripts) === sorted(reference)).pipe(
    Effect.repeat({ until: (same) => same, schedule: Schedule.spaced("2 millis") }),
    Effect.timeoutOrElse({
      duration: "20 seconds",
      orElse: () => Effect.die(new Error(`news: Redis ${sorted(scripts)}, memory ${sorted(reference)}`))
    })
  )
}, Effect.scoped)

const show = (actual: unknown, expected: unknown) =>
  `Redis ${JSON.stringify(actual)}, memory ${JSON.stringify(expected)}`

const byId = (a: { readonly holderId: string }, b: { readonly holderId: string }) => a.holderId < b.holderId ? -1 : 1

const check = (options: Arbitrary.CheckOptions) =>
  Arbitrary.checkEffect(
    Commands,
    (commands) => compare(commands).pipe(Effect.as(true), Effect.sandbox),
    { runs: 1, size: 80, maxShrinks: 300, ...options }
  ).pipe(
    Effect.flatMap((result) => {
      if (result._tag === "Passed") return Effect.void
      if (result._tag !== "Falsified") return Effect.die(new Error(Arbitrary.formatCheckFailure(result)))
      const { failure, replay, shrunkInput } = result
      const lines = [
        failure._tag === "PropertyError" ? String(Cause.squash(failure.error)) : failure._tag,
        ...shrunkInput.map((command, i) => `${i}. ${JSON.stringify(command)}`),
        `DIFFERENTIAL_REPLAY='${replay}' or DIFFERENTIAL_SEED=${seed}`
      ]
      return Effect.die(new Error(lines.join("\n")))
    })
  )

const Subject = LockStoreSuite.Subject.layer(client(), { otherClient: client }).pipe(Layer.provideMerge(Server))

layer(Subject, { excludeTestServices: true })("the memory store and the Redis scripts", (it) => {
  it.effect(`answer alike to ${sequences} random sequences of commands`, () =>
    replay === undefined
      ? Effect.forEach(
        Array.from({ length: sequences }, (_, i) => `${seed}-${i}`),
        (seed) => check({ seed }),
        { concurrency: 8, discard: true }
      )
      : check({ replay }), Math.max(900_000, sequences * 900))

  it.effect("leave no key without an expiry, and none that expires before a lease in it", () =>
    Effect.gen(function*() {
      const server = yield* RedisServer.RedisServer
      const { clients: [store] } = yield* LockStoreSuite.Subject
      const names = yield* server.keys("*")
      assert.isNotEmpty(names)
      yield* Effect.forEach(
        names,
        Effect.fnUntraced(function*(name) {
          const since = performance.now()
          const key = /^effect-lock:\{(.*)\}$/.exec(name)?.[1]
          const holders = key === undefined ? [] : (yield* store.inspect(key)).holders
          const left = Number(yield* server.command("PTTL", name))
          assert.notStrictEqual(left, -1, name)
          // Gone since it was listed.
          if (left === -2) return
          const took = performance.now() - since
          for (const { timeLeft } of holders) assert.isAtLeast(left + took + 1, timeLeft, name)
        }),
        { concurrency: 100, discard: true }
      )
    }))
})
