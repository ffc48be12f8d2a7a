import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Exit, Fiber, Option, Scope } from "effect"
import { TestClock } from "effect/testing"
import { type LockError, type Permits, ReadWriteLock } from "../src/index.ts"
import { crashed, hold, setup } from "./support/permits.ts"
import { makeLock, unavailable } from "./support/TestStore.ts"
import { drive, settle, until } from "./support/time.ts"

const config = ReadWriteLock.make("config")
const all = 2 ** 20

const permitsOf = (infos: ReadonlyArray<{ readonly permits: number }>) => infos.map(({ permits }) => permits)

const isDeadlock = (error: unknown) => assert.deepInclude(error, { _tag: "LockDeadlock", key: "config" })

/** Who is inside, and whoever is inside with a writer. */
const makeRoom = () => {
  let readers = 0
  let writers = 0
  const room = { mostReaders: 0, entries: Array<string>() }
  const check = () =>
    assert.isTrue(writers <= 1 && (writers === 0 || readers === 0), `${writers} write, ${readers} read`)
  const stay = (enter: () => void, leave: () => void, millis: number) =>
    Effect.acquireUseRelease(
      Effect.sync(() => {
        enter()
        check()
      }),
      () => Effect.sleep(millis),
      () => Effect.sync(leave)
    )
  return {
    room,
    entries: room.entries,
    read: (name: string, millis = 5) =>
      stay(
        () => {
          room.entries.push(name)
          room.mostReaders = Math.max(room.mostReaders, ++readers)
        },
        () => readers--,
        millis
      ),
    write: (name: string, millis = 5) =>
      stay(
        () => {
          room.entries.push(name)
          writers++
        },
        () => writers--,
        millis
      )
  }
}

describe("readers and writers", () => {
  it.effect("G1, G10: readers that ask in a row are in together, then the writer behind them, then the next readers", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const { entries, read, room, write } = makeRoom()
      const asked: ReadonlyArray<string> = ["r1", "r2", "w1", "r3", "r4", "r5", "w2", "w3", "r6"]
      for (const [i, name] of asked.entries()) {
        const work = name.startsWith("r") ? config.withRead(read(name)) : config.withWrite(write(name))
        yield* Effect.forkChild((i % 2 === 0 ? client : other)(work))
        yield* until(() => store.count("attempt") === i + 1)
      }
      yield* TestClock.adjust(1)
      const batches = [["r1", "r2"], ["w1"], ["r3", "r4", "r5"], ["w2"], ["w3"], ["r6"]]
      for (const [i] of batches.entries()) {
        assert.deepStrictEqual(entries, batches.slice(0, i + 1).flat())
        yield* TestClock.adjust(5)
      }
      assert.strictEqual(room.mostReaders, 3)
    }))

  for (const [crowd, single] of [["readers", "writer"], ["writers", "reader"]] as const) {
    it.effect(`G10: ${crowd} that never cease to come do not keep a ${single} out`, () =>
      Effect.gen(function*() {
        const { client, other, store } = yield* setup()
        const { entries, read, write } = makeRoom()
        const reader = config.withRead(read("reader", 20))
        const writer = config.withWrite(write("writer", 20))
        const [many, one, name] = crowd === "readers" ? [reader, writer, "writer"] : [writer, reader, "reader"]
        for (let i = 0; i < 8; i++) {
          yield* Effect.forkChild(Effect.forever((i % 2 === 0 ? client : other)(many)))
          // One comes in while the others are there: the key is never free.
          yield* TestClock.adjust(3)
        }
        for (let turn = 0; turn < 20; turn++) {
          const before = entries.length
          const queued = (yield* store.inspect("config")).waiters.length
          const single = yield* Effect.forkChild(client(one))
          yield* drive(single, { limit: 2000 })
          // Nobody who asked later was in before.
          const passed = entries.slice(before).indexOf(name)
          assert.isAtMost(passed, queued, `in turn ${turn}`)
        }
      }))
  }

  it.effect("a reader that is never heard of again is in a writer's way for its own ttl, not longer", () =>
    Effect.gen(function*() {
      const { client, store } = yield* setup()
      yield* crashed(store, { key: "config", permits: 1, limit: all, ttl: 400 })
      yield* client(config.withRead(Effect.void))
      const writer = yield* Effect.forkChild(client(config.withWrite(Effect.succeed("in"))))
      yield* TestClock.adjust(399)
      assert.isUndefined(writer.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual(yield* Fiber.join(writer), "in")
    }))

  it.effect("who does not wait gets None when it would have to", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const attempts = other(Effect.all({
        withRead: config.withReadIfAvailable(Effect.succeed("in")),
        withWrite: config.withWriteIfAvailable(Effect.succeed("in")),
        read: Effect.map(Effect.scoped(config.tryAcquireRead), Option.as("in")),
        write: Effect.map(Effect.scoped(config.tryAcquireWrite), Option.as("in"))
      }))
      const [yes, no] = [Option.some("in"), Option.none()]
      assert.deepStrictEqual(yield* attempts, { withRead: yes, withWrite: yes, read: yes, write: yes })
      const reader = yield* hold((body) => client(config.withRead(body)))
      assert.deepStrictEqual(yield* attempts, { withRead: yes, withWrite: no, read: yes, write: no })
      const writer = yield* Effect.forkChild(client(config.withWrite(Effect.void)))
      yield* until(() => store.requests.at(-1)!.wait)
      assert.deepStrictEqual(yield* attempts, { withRead: no, withWrite: no, read: no, write: no })
      yield* reader.end
      yield* Fiber.join(writer)
      const last = yield* hold((body) => client(config.withWrite(body)))
      assert.deepStrictEqual(yield* attempts, { withRead: no, withWrite: no, read: no, write: no })
      assert.deepStrictEqual(permitsOf((yield* client(config.inspect)).holders), [all])
      yield* last.end
    }))

  it.effect("share a key with nobody who counts otherwise", () =>
    Effect.gen(function*() {
      const { client, store } = yield* setup()
      const lock = yield* makeLock(store)
      const reader = yield* hold((body) => client(config.withRead(body)))
      const error = yield* Effect.flip(lock.withLock(Effect.void, "config"))
      assert.deepInclude(error, { _tag: "PermitsRefused", key: "config", actual: all })
      yield* reader.end
    }))

  it.effect("an adopted lease excludes as much as the one that was handed off", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const lock = yield* makeLock(store)
      const ticket = yield* client(Effect.scoped(Effect.flatMap(config.acquireWrite, (lease) => lease.handOff)))
      yield* Effect.scoped(Effect.andThen(
        lock.adopt(ticket),
        Effect.map(other(config.withReadIfAvailable(Effect.void)), (entered) => assert.isTrue(Option.isNone(entered)))
      ))
      assert.isTrue(Option.isSome(yield* other(config.withWriteIfAvailable(Effect.void))))
    }))
})

describe("nested in a region of the same key", () => {
  const { withRead, withWrite } = config

  for (
    const [title, nested] of [
      ["withRead in withRead", withRead(withRead(Effect.succeed("in")))],
      ["withRead in withWrite", withWrite(withRead(Effect.succeed("in")))],
      ["withWrite in withWrite", withWrite(withWrite(Effect.succeed("in")))],
      ["withRead in withWrite in withWrite", withWrite(withWrite(withRead(Effect.succeed("in"))))],
      ["withWrite in withRead in withWrite", withWrite(withRead(withWrite(Effect.succeed("in"))))],
      ["acquireRead in withRead", withRead(Effect.as(Effect.scoped(config.acquireRead), "in"))],
      ["acquireWrite in withWrite", withWrite(Effect.as(Effect.scoped(config.acquireWrite), "in"))]
    ] as const
  ) {
    it.effect(`${title} uses its lease, though a writer waits`, () =>
      Effect.gen(function*() {
        const { client, other, store } = yield* setup()
        const blocker = yield* hold((body) => other(withWrite(body)))
        const fiber = yield* Effect.forkChild(client(nested))
        yield* until(() => store.count("attempt") === 2)
        const writer = yield* Effect.forkChild(other(withWrite(Effect.void)))
        yield* until(() => store.count("attempt") === 3)
        yield* blocker.end
        assert.strictEqual(yield* Fiber.join(fiber), "in")
        yield* Fiber.join(writer)
        assert.strictEqual(store.count("attempt"), 3)
      }))
  }

  for (
    const [title, nested, wayOut] of [
      ["withWrite in withRead", withRead(withWrite(Effect.void)), "Upgrade the read lease"],
      ["acquireWrite in withRead", withRead(Effect.scoped(config.acquireWrite)), "Upgrade the read lease"],
      [
        "withWrite in withRead, in a time-out's fiber",
        withRead(Effect.timeout(withWrite(Effect.void), 1000)),
        "Upgrade the read lease"
      ],
      [
        "withWrite after acquireRead",
        Effect.scoped(Effect.andThen(config.acquireRead, withWrite(Effect.void))),
        "Upgrade the read lease"
      ],
      [
        "withRead after acquireWrite",
        Effect.scoped(Effect.andThen(config.acquireWrite, withRead(Effect.void))),
        "nest inside withRead or withWrite"
      ],
      [
        "withRead after acquireRead",
        Effect.scoped(Effect.andThen(config.acquireRead, withRead(Effect.void))),
        "nest inside withRead or withWrite"
      ]
    ] as const
  ) {
    it.effect(`${title} would wait for itself, and fails at once`, () =>
      Effect.gen(function*() {
        const { client, store } = yield* setup()
        const error = yield* Effect.flip(client<unknown, unknown, any>(nested))
        isDeadlock(error)
        assert.include((error as LockError.LockDeadlock).message, wayOut)
        assert.strictEqual(store.count("attempt"), 1)
      }))
  }

  it.effect("G1: siblings take turns", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      const { entries, read, write } = makeRoom()
      const fiber = yield* Effect.forkChild(client(withWrite(
        Effect.all([withWrite(write("w1")), withRead(read("r1")), withWrite(write("w2"))], { concurrency: 3 })
      )))
      yield* drive(fiber)
      assert.deepStrictEqual(entries, ["w1", "r1", "w2"])
    }))
})

describe("upgrade", () => {
  /** Reads, and upgrades when told to; then writes for 10 ms, and reads on. */
  const upgrading = (trace: Array<string>, name: string, ready: Effect.Effect<unknown>) =>
    config.withReadLease((lease) =>
      Effect.gen(function*() {
        trace.push(`${name} reads`)
        yield* ready
        yield* Effect.scoped(Effect.gen(function*() {
          const upper = yield* lease.upgrade
          trace.push(`${name} writes`)
          yield* upper.protect(Effect.sleep(10))
          trace.push(`${name} has written`)
        }))
        yield* Effect.sleep(10)
        yield* lease.check
        trace.push(`${name} has read`)
      })
    )

  it.effect("waits for the other readers, ahead of a writer that waits; then it is a reader again", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const { entries, read, write } = makeRoom()
      const reader = yield* hold((body) => other(config.withRead(body)))
      const ready = yield* Deferred.make<void>()
      const fiber = yield* Effect.forkChild(client(upgrading(entries, "it", Deferred.await(ready))))
      yield* until(() => entries.length === 1)
      yield* Effect.forkChild(other(config.withWrite(write("writer"))))
      yield* until(() => store.count("attempt") === 3)
      yield* Effect.forkChild(other(config.withRead(read("late reader"))))
      yield* until(() => store.count("attempt") === 4)
      yield* Deferred.succeed(ready, undefined)
      yield* until(() => store.count("attempt") === 5)
      yield* TestClock.adjust(20)
      assert.deepStrictEqual(entries, ["it reads"])
      assert.deepStrictEqual(permitsOf((yield* store.inspect("config")).waiters), [all - 1, all, 1])
      yield* reader.end
      yield* drive(fiber)
      yield* until(() => entries.length === 5)
      yield* TestClock.adjust(5)
      assert.deepStrictEqual(entries, [
        "it reads",
        "it writes",
        "it has written",
        "it has read",
        "writer",
        "late reader"
      ])
    }))

  it.effect("of the only reader costs one command, and one to be a reader again", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const entered = other(config.withReadIfAvailable(Effect.void))
      yield* client(config.withReadLease((lease) =>
        Effect.gen(function*() {
          const before = store.trace.length
          yield* Effect.scoped(Effect.gen(function*() {
            const upper = yield* lease.upgrade
            assert.isAbove(upper.token, lease.token)
            assert.deepStrictEqual(store.trace.slice(before), ["attempt sent", "attempt Granted"])
            assert.isTrue(Option.isNone(yield* entered))
          }))
          assert.isTrue(Option.isSome(yield* entered))
        })
      ))
      assert.strictEqual(store.count("release"), 3)
    }))

  it.effect("of two readers: the second fails at once, and the first gets in when it gives up its lease", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const trace: Array<string> = []
      const ready = yield* Deferred.make<void>()
      const one = yield* Effect.forkChild(client(upgrading(trace, "one", Deferred.await(ready))))
      const two = yield* hold((body) =>
        other(
          config.withReadLease((lease) =>
            Effect.andThen(body, Effect.scoped(Effect.flatMap(lease.upgrade, () => Effect.void)))
          )
        ).pipe(Effect.catchTag("LockUpgradeConflict", (error) =>
          Effect.sync(() => {
            assert.deepStrictEqual(permitsOf(error.holders), [1, 1])
            assert.isAbove(error.token, 0)
            assert.match(error.message, /another one of 2 readers asked first/)
            trace.push("two gives up")
          })))
      )
      yield* Deferred.succeed(ready, undefined)
      yield* until(() => store.count("attempt") === 3)
      yield* settle
      assert.deepStrictEqual(trace, ["one reads"])
      yield* two.end
      yield* Fiber.join(two.fiber)
      yield* drive(one)
      assert.deepStrictEqual(trace, ["one reads", "two gives up", "one writes", "one has written", "one has read"])
      assert.deepStrictEqual(yield* store.inspect("config"), { key: "config", holders: [], waiters: [] })
    }))

  it.effect("has its turn in the region: what is nested there does not read meanwhile", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      const { entries, read, write } = makeRoom()
      const upgraded = (lease: ReadWriteLock.ReadLease) =>
        Effect.scoped(Effect.andThen(lease.upgrade, write("upgraded")))
      const fiber = yield* Effect.forkChild(
        client(
          config.withReadLease((lease) =>
            Effect.all([config.withRead(read("r1")), upgraded(lease), config.withRead(read("r2"))], { concurrency: 3 })
          )
        )
      )
      yield* drive(fiber)
      assert.deepStrictEqual(entries, ["r1", "upgraded", "r2"])
    }))

  it.effect("in a nested region works as in the outer one, and in a writer's region asks for nothing", () =>
    Effect.gen(function*() {
      const { client, store } = yield* setup()
      const upgraded = config.withReadLease((lease) =>
        Effect.scoped(
          Effect.andThen(lease.upgrade, Effect.map(client(config.inspect), ({ holders }) => permitsOf(holders)))
        )
      )
      assert.deepStrictEqual(yield* client(config.withRead(upgraded)), [1, all - 1])
      assert.deepStrictEqual(yield* client(config.withWrite(upgraded)), [all])
      assert.strictEqual(store.count("attempt"), 3)
    }))

  it.effect("works on a lease of acquireRead", () =>
    Effect.gen(function*() {
      const { client, other } = yield* setup()
      yield* client(Effect.scoped(Effect.gen(function*() {
        const lease = yield* config.acquireRead
        yield* Effect.scoped(Effect.gen(function*() {
          const upper = yield* lease.upgrade
          yield* upper.check
          assert.isTrue(Option.isNone(yield* other(config.withReadIfAvailable(Effect.void))))
        }))
        yield* lease.check
        assert.isTrue(Option.isSome(yield* other(config.withReadIfAvailable(Effect.void))))
      })))
    }))

  for (
    const [title, program] of [
      [
        "twice in a region",
        config.withReadLease((lease) => Effect.scoped(Effect.andThen(lease.upgrade, Effect.scoped(lease.upgrade))))
      ],
      [
        "twice in a scope",
        Effect.scoped(Effect.flatMap(config.acquireRead, (lease) => Effect.andThen(lease.upgrade, lease.upgrade)))
      ],
      [
        "somebody else's lease inside a region",
        Effect.gen(function*() {
          const scope = yield* Effect.scope
          const lease = yield* Effect.flatMap(Effect.forkChild(Scope.provide(config.acquireRead, scope)), Fiber.join)
          return yield* config.withRead(Effect.scoped(lease.upgrade))
        })
      ],
      [
        "somebody else's lease beside one of its own",
        Effect.gen(function*() {
          const scope = yield* Effect.scope
          const lease = yield* Effect.flatMap(Effect.forkChild(Scope.provide(config.acquireRead, scope)), Fiber.join)
          return yield* Effect.scoped(Effect.andThen(config.acquireRead, Effect.scoped(lease.upgrade)))
        })
      ],
      [
        "nesting in an upgraded part",
        config.withReadLease((lease) => Effect.scoped(Effect.andThen(lease.upgrade, config.withRead(Effect.void))))
      ]
    ] as const
  ) {
    it.effect(`would wait for itself, and fails at once: ${title}`, () =>
      Effect.gen(function*() {
        const { client, store } = yield* setup()
        isDeadlock(yield* Effect.flip(client(Effect.scoped<unknown, unknown, any>(program))))
        assert.deepStrictEqual(yield* store.inspect("config"), { key: "config", holders: [], waiters: [] })
      }))
  }

  it.effect("that waits for too long tells who reads, and leaves a reader that can try again", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const impatient = ReadWriteLock.make("config", { waitTimeout: 100 })
      const reader = yield* hold((body) => other(config.withRead(body)))
      const fiber = yield* Effect.forkChild(client(impatient.withReadLease((lease) =>
        Effect.gen(function*() {
          const error = yield* Effect.flip(Effect.scoped(lease.upgrade))
          assert(error._tag === "LockTimeout", error.message)
          assert.deepStrictEqual([permitsOf(error.holders), error.position, error.queueLength], [[1, 1], 0, 1])
          assert.deepStrictEqual((yield* store.inspect("config")).waiters, [])
          assert.isTrue(Option.isSome(yield* other(config.withReadIfAvailable(Effect.void))))
          yield* reader.end
          yield* Fiber.join(reader.fiber)
          yield* Effect.scoped(lease.upgrade)
          yield* lease.check
        })
      )))
      assert.isTrue(Exit.isSuccess(yield* drive(fiber)))
    }))

  it.effect("is not refused because others wait: it stands before them", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const bounded = ReadWriteLock.make("config", { maxWaiters: 0 })
      yield* client(bounded.withReadLease((lease) =>
        Effect.gen(function*() {
          yield* Effect.forkChild(other(config.withWrite(Effect.void)))
          yield* until(() => store.count("attempt") === 2)
          yield* Effect.scoped(lease.upgrade)
        })
      ))
    }))

  it.effect("G4: ends its wait, and its work, when the read lease is lost", () =>
    Effect.gen(function*() {
      for (const isWaiting of [true, false]) {
        const { client, other, store } = yield* setup({ ttl: 300 })
        // Two: the permit of an evicted reader makes up for that of another one.
        const readers = yield* Effect.forEach(
          isWaiting ? [1, 2] : [],
          () => hold((body) => other(config.withRead(body)))
        )
        let lease: ReadWriteLock.ReadLease | undefined
        const fiber = yield* Effect.forkChild(client(Effect.scoped(Effect.gen(function*() {
          lease = yield* config.acquireRead
          const upper = yield* lease.upgrade
          assert.isFalse(isWaiting)
          yield* Effect.forkScoped(Effect.flip(upper.lost))
          return yield* upper.protect(Effect.never)
        }))))
        yield* until(() => store.count("attempt") === (isWaiting ? 4 : 2))
        yield* settle
        yield* store.evict("config", lease!.holderId)
        yield* TestClock.adjust(100)
        assert.deepInclude(yield* Effect.flip(Fiber.join(fiber)), {
          _tag: "LockLost",
          reason: "NotHeld",
          holderId: lease!.holderId
        })
        for (const reader of readers) yield* reader.end
        yield* settle
        assert.deepStrictEqual(yield* store.inspect("config"), { key: "config", holders: [], waiters: [] })
      }
    }))

  it.effect("G4: is over as a whole when either of the two leases is lost, and not handed off", () =>
    Effect.gen(function*() {
      for (const isReader of [true, false]) {
        const { client, store } = yield* setup({ ttl: 300 })
        yield* client(Effect.scoped(Effect.gen(function*() {
          const lease = yield* config.acquireRead
          const upper = yield* lease.upgrade
          assert.isFalse("handOff" in upper)
          yield* upper.extend(400)
          yield* upper.heartbeat
          assert.strictEqual(store.count("renew"), 2)
          assert.isTrue(yield* upper.isValid)
          const lost = yield* Effect.forkChild(Effect.flip(upper.lost))
          const revoked = yield* Effect.forkChild(Effect.flip(upper.revocation))
          const { holderId } = isReader ? lease : upper
          yield* store.evict("config", holderId)
          yield* TestClock.adjust(150)
          const about = { _tag: "LockLost", holderId } as const
          assert.deepInclude(yield* Fiber.join(lost), about)
          assert.deepInclude(yield* Fiber.join(revoked), about)
          assert.deepInclude(yield* Effect.flip(upper.check), about)
          assert.deepInclude(yield* Effect.flip(upper.protect(Effect.void)), about)
          assert.deepInclude(yield* Effect.flip(upper.heartbeat), about)
          assert.isFalse(yield* upper.isValid)
        })))
      }
    }))

  it.effect("of a lease that is over fails, and asks for nothing", () =>
    Effect.gen(function*() {
      const { client, store } = yield* setup()
      const lease = yield* client(Effect.scoped(config.acquireRead))
      const error: LockError.LockError | LockError.LockUpgradeConflict = yield* Effect.flip(
        Effect.scoped(lease.upgrade)
      )
      assert.deepInclude(error, { _tag: "LockLost", reason: "Released" })
      assert.strictEqual(store.count("attempt"), 1)
    }))
})

describe("downgrade", () => {
  it.effect("lets in at once those who wait to read, and no writer; the lease goes on", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const { entries, read, write } = makeRoom()
      const fiber = yield* Effect.forkChild(client(config.withWriteLease((lease) =>
        Effect.gen(function*() {
          for (const name of ["r1", "r2"]) yield* Effect.forkDetach(other(config.withRead(read(name, 50))))
          yield* until(() => store.count("attempt") === 3)
          yield* Effect.forkDetach(other(config.withWrite(write("writer"))))
          yield* until(() => store.count("attempt") === 4)
          const reading = yield* lease.downgrade
          yield* until(() => entries.length === 2)
          assert.deepStrictEqual(entries, ["r1", "r2"])
          assert.deepStrictEqual([reading.holderId, reading.token], [lease.holderId, lease.token])
          yield* Effect.sleep(100)
          yield* reading.check
          entries.push("has read")
        })
      )))
      yield* drive(fiber)
      yield* until(() => entries.length === 4)
      assert.deepStrictEqual(entries, ["r1", "r2", "has read", "writer"])
    }))

  it.effect("can be followed by an upgrade, and by another downgrade, which changes nothing", () =>
    Effect.gen(function*() {
      const { client, other } = yield* setup()
      const entered = other(config.withReadIfAvailable(Effect.void))
      const program = (lease: ReadWriteLock.WriteLease) =>
        Effect.gen(function*() {
          assert.isTrue(Option.isNone(yield* entered))
          const reading = yield* lease.downgrade
          yield* lease.downgrade
          assert.isTrue(Option.isSome(yield* entered))
          yield* Effect.scoped(
            Effect.andThen(reading.upgrade, Effect.map(entered, (it) => assert.isTrue(Option.isNone(it))))
          )
          assert.isTrue(Option.isSome(yield* entered))
        })
      yield* client(config.withWriteLease(program))
      yield* client(Effect.scoped(Effect.flatMap(config.acquireWrite, program)))
    }))

  it.effect("leaves a region in which nobody can write any more, but read", () =>
    Effect.gen(function*() {
      const { client } = yield* setup()
      yield* client(config.withWriteLease((lease) =>
        Effect.gen(function*() {
          yield* lease.downgrade
          yield* config.withRead(Effect.void)
          isDeadlock(yield* Effect.flip(config.withWrite(Effect.void)))
        })
      ))
    }))

  it.effect("G1: waits for a nested writer to end, and lets nobody in before", () =>
    Effect.gen(function*() {
      const { client, other } = yield* setup()
      const { read, room, write } = makeRoom()
      const fiber = yield* Effect.forkChild(client(config.withWriteLease((lease) =>
        Effect.gen(function*() {
          const nested = yield* Effect.forkChild(config.withWrite(write("nested", 50)))
          yield* until(() => room.entries.length === 1)
          yield* Effect.forkDetach(other(config.withRead(read("reader"))))
          yield* lease.downgrade
          assert.isDefined(nested.pollUnsafe())
          yield* until(() => room.entries.length === 2)
        })
      )))
      assert.isTrue(Exit.isSuccess(yield* drive(fiber)))
    }))

  it.effect("G1: inside of what is nested fails at once, and changes nothing: those around still write", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      const entered = other(config.withReadIfAvailable(Effect.void))
      yield* client(config.withWriteLease((outer) =>
        Effect.gen(function*() {
          for (
            const downgrading of [
              config.withWriteLease((lease) => lease.downgrade),
              config.withWriteLease((lease) => Effect.timeout(lease.downgrade, "1 second")),
              config.withWrite(outer.downgrade),
              config.withRead(outer.downgrade),
              Effect.scoped(Effect.flatMap(config.acquireWrite, (lease) => lease.downgrade)),
              Effect.scoped(Effect.andThen(config.acquireRead, outer.downgrade))
            ]
          ) {
            const failing: Effect.Effect<unknown, unknown, Permits.Permits> = downgrading
            const error = yield* Effect.flip(failing)
            isDeadlock(error)
            assert.match((error as Error).message, /What is nested has to end/)
          }
          assert.isTrue(Option.isNone(yield* entered))
          yield* config.withWrite(Effect.void)
          assert.strictEqual(store.count("shrink"), 0)
          yield* outer.downgrade
          assert.isTrue(Option.isSome(yield* entered))
        })
      ))
    }))

  it.effect("that is not confirmed fails; this one may write no more, and tries again", () =>
    Effect.gen(function*() {
      const { client, other, store } = yield* setup()
      store.faults.shrink = (run, index) => index === 0 ? unavailable : run
      yield* client(config.withWriteLease((lease) =>
        Effect.gen(function*() {
          assert.deepInclude(yield* Effect.flip(lease.downgrade), { _tag: "LockStoreError" })
          isDeadlock(yield* Effect.flip(config.withWrite(Effect.void)))
          yield* lease.downgrade
          assert.isTrue(Option.isSome(yield* other(config.withReadIfAvailable(Effect.void))))
        })
      ))
    }))

  it.effect("G4: of a lease that the store does not know any more is a loss", () =>
    Effect.gen(function*() {
      const { client, store } = yield* setup()
      const lost = client(
        config.withWriteLease((lease) => Effect.andThen(store.evict("config", lease.holderId), lease.downgrade))
      )
      assert.deepInclude(yield* Effect.flip(lost), { _tag: "LockLost", reason: "NotHeld" })
      const over = yield* client(Effect.scoped(config.acquireWrite))
      assert.deepInclude(yield* Effect.flip(over.downgrade), { _tag: "LockLost", reason: "Released" })
    }))
})
