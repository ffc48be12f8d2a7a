import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { LockHistory } from "../src/index.ts"

interface Times {
  readonly key?: string
  readonly client?: string
  readonly permits?: number
  readonly token?: number
  readonly deadline?: number
  readonly invoke?: number
  readonly enqueued?: number
  readonly acquired?: number
  readonly release?: number
  readonly released?: number
  readonly lost?: number
  readonly failed?: number
}

/** The events of one operation, from the times at which they happened. */
const op = (
  id: string,
  { client = "c", deadline, key = "k", permits, token = 0, ...times }: Times
): ReadonlyArray<LockHistory.Event> =>
  Object.entries(times).map(([kind, time]) => ({
    kind,
    client,
    op: id,
    key,
    time: BigInt(time),
    ...(kind === "acquired" && { token }),
    ...(kind === "invoke" && permits !== undefined && { permits }),
    ...((kind === "release" || kind === "lost") && deadline !== undefined && { deadline: BigInt(deadline) })
  } as LockHistory.Event))

const check = (
  options: Parameters<typeof LockHistory.check>[1],
  ...ops: ReadonlyArray<ReadonlyArray<LockHistory.Event>>
) => LockHistory.check(ops.flat(), options)

const tags = (violations: ReadonlyArray<LockHistory.Violation>) => violations.map(({ _tag }) => _tag)

describe("LockHistory.check", () => {
  it("accepts an empty history", () => {
    assert.deepStrictEqual(check({}), [])
  })

  it("accepts holds that follow each other, whatever order the events are in", () => {
    const events = [
      op("a", { invoke: 0, acquired: 10, token: 1, release: 20, released: 25 }),
      op("b", { invoke: 5, enqueued: 8, acquired: 22, token: 2, lost: 30 }),
      op("c", { invoke: 6, enqueued: 9, failed: 12 }),
      op("d", { invoke: 7, enqueued: 10, acquired: 30, token: 7, release: 31 })
    ]
    assert.deepStrictEqual(check({}, ...events), [])
    assert.deepStrictEqual(check({}, events.flat().toReversed()), [])
  })

  it("keeps keys apart", () => {
    assert.deepStrictEqual(
      check(
        {},
        op("a", { key: "x", invoke: 0, acquired: 10, token: 2, release: 20 }),
        op("b", { key: "y", invoke: 11, enqueued: 12, acquired: 15, token: 1, release: 30 }),
        op("c", { key: "z", invoke: 13, acquired: 16, token: 1, release: 30 })
      ),
      []
    )
  })

  describe("DuplicateToken", () => {
    it("finds two grants with one token", () => {
      assert.deepStrictEqual(
        check(
          {},
          op("a", { invoke: 0, acquired: 10, token: 1, release: 20 }),
          op("b", { invoke: 0, acquired: 30, token: 1, release: 40 })
        ),
        [{ _tag: "DuplicateToken", key: "k", token: 1, ops: ["a", "b"] }]
      )
    })
  })

  describe("TokenOrder", () => {
    it("finds a smaller token of an operation that began after the greater one was known", () => {
      assert.deepStrictEqual(
        check(
          { limit: 2 },
          op("a", { invoke: 0, acquired: 10, token: 5, release: 20 }),
          op("b", { invoke: 11, acquired: 12, token: 4, release: 15 })
        ),
        [{ _tag: "TokenOrder", key: "k", earlier: "a", later: "b" }]
      )
    })

    it("compares with the greatest of all earlier tokens, not the last", () => {
      assert.deepStrictEqual(
        check(
          { limit: 3 },
          op("a", { invoke: 0, acquired: 10, token: 9, release: 20 }),
          op("b", { invoke: 0, acquired: 15, token: 3, release: 20 }),
          op("c", { invoke: 16, acquired: 17, token: 8, release: 20 })
        ),
        [{ _tag: "TokenOrder", key: "k", earlier: "a", later: "c" }]
      )
    })

    it("counts the token of an operation whose end is unknown", () => {
      assert.deepStrictEqual(
        check({}, op("a", { invoke: 0, acquired: 10, token: 5 }), op("b", { invoke: 11, acquired: 90, token: 4 })),
        [{ _tag: "TokenOrder", key: "k", earlier: "a", later: "b" }]
      )
    })

    it("finds holds in the wrong order when both were asked for at the same time", () => {
      assert.deepStrictEqual(
        check(
          {},
          op("a", { invoke: 0, acquired: 10, token: 2, release: 20 }),
          op("b", { invoke: 0, acquired: 30, token: 1, release: 40 })
        ),
        [{ _tag: "TokenOrder", key: "k", earlier: "a", later: "b" }]
      )
    })

    it("accepts any order of grants that ran at the same time and are not certain to have been held", () => {
      const concurrent = [
        op("a", { invoke: 0, acquired: 10, token: 2, release: 20 }),
        op("b", { invoke: 0, acquired: 30, token: 1, release: 40 })
      ]
      assert.deepStrictEqual(check({ limit: 2 }, ...concurrent), [])
      // "b" was granted first, paused, and learnt of its grant when that was long over.
      assert.deepStrictEqual(
        check({}, concurrent[0]!, op("b", { invoke: 0, acquired: 30, token: 1, lost: 31, deadline: 9 })),
        []
      )
    })
  })

  describe("Overlap", () => {
    it("finds two holders at a time", () => {
      assert.deepStrictEqual(
        check(
          {},
          op("a", { invoke: 0, acquired: 10, token: 1, release: 20, released: 22 }),
          op("b", { invoke: 0, acquired: 19, token: 2, release: 30 })
        ),
        [{ _tag: "Overlap", key: "k", time: 19n, op: "b", holders: ["a"], permits: 2 }]
      )
    })

    it("names only those who still hold", () => {
      assert.deepStrictEqual(
        check(
          {},
          op("a", { invoke: 0, acquired: 10, token: 1, release: 15 }),
          op("b", { invoke: 0, acquired: 16, token: 2, release: 30 }),
          op("c", { invoke: 0, acquired: 20, token: 3, release: 25 })
        ),
        [{ _tag: "Overlap", key: "k", time: 20n, op: "c", holders: ["b"], permits: 2 }]
      )
    })

    it("finds a hold within another", () => {
      assert.deepStrictEqual(
        tags(check(
          {},
          op("a", { invoke: 0, acquired: 10, token: 1, release: 100 }),
          op("b", { invoke: 0, acquired: 19, token: 2, release: 30 })
        )),
        ["Overlap"]
      )
    })

    it("takes a hold to end when the lease was lost, at its deadline, or when the release began", () => {
      const second = op("b", { invoke: 0, acquired: 19, token: 2, release: 30 })
      const first = { invoke: 0, acquired: 10, token: 1 }
      assert.deepStrictEqual(check({}, op("a", { ...first, lost: 19, release: 50 }), second), [])
      assert.deepStrictEqual(check({}, op("a", { ...first, release: 19, lost: 50 }), second), [])
      assert.deepStrictEqual(check({}, op("a", { ...first, lost: 50, deadline: 19 }), second), [])
      assert.deepStrictEqual(check({}, op("a", { ...first, release: 50, deadline: 19 }), second), [])
      assert.deepStrictEqual(check({}, op("a", first), second), [])
      assert.deepStrictEqual(tags(check({}, op("a", { ...first, lost: 50, deadline: 20 }), second)), ["Overlap"])
      assert.deepStrictEqual(tags(check({}, op("a", { ...first, release: 19, deadline: 50 }), second)), [])
    })

    it("counts permits", () => {
      const hold = (id: string, token: number, permits: number) =>
        op(id, { invoke: 0, acquired: 10 + token, token, permits, release: 20 + token })
      assert.deepStrictEqual(check({ limit: 3 }, hold("a", 1, 1), hold("b", 2, 2)), [])
      assert.deepStrictEqual(check({ limit: 3 }, hold("a", 1, 1), hold("b", 2, 1), hold("c", 3, 1)), [])
      assert.deepStrictEqual(check({ limit: 3 }, hold("a", 1, 2), hold("b", 2, 2)), [
        { _tag: "Overlap", key: "k", time: 12n, op: "b", holders: ["a"], permits: 4 }
      ])
      assert.deepStrictEqual(check({ limit: 3 }, hold("a", 1, 3), hold("b", 11, 3)), [])
    })
  })

  describe("NotFifo", () => {
    const overtaken = [
      op("a", { invoke: 0, enqueued: 5, acquired: 30, token: 2, release: 40 }),
      op("b", { invoke: 6, acquired: 10, token: 1, release: 20 })
    ]

    it("finds an operation that overtook one already in the queue", () => {
      assert.deepStrictEqual(check({}, ...overtaken), [{ _tag: "NotFifo", key: "k", earlier: "a", later: "b" }])
    })

    it("can be switched off", () => {
      assert.deepStrictEqual(check({ fifo: false }, ...overtaken), [])
    })

    it("accepts overtaking one whose place was not confirmed before the other began", () => {
      const b = overtaken[1]!
      const a = { invoke: 0, acquired: 30, token: 2, release: 40 }
      assert.deepStrictEqual(check({}, op("a", { ...a, enqueued: 6 }), b), [])
      assert.deepStrictEqual(check({}, op("a", a), b), [])
    })

    it("accepts overtaking one that gave up", () => {
      assert.deepStrictEqual(check({}, op("a", { invoke: 0, enqueued: 5, failed: 30 }), overtaken[1]!), [])
    })
  })

  describe("Malformed", () => {
    const cases: ReadonlyArray<readonly [problem: string, events: ReadonlyArray<LockHistory.Event>]> = [
      ["no invoke", op("a", { acquired: 1, token: 1, release: 2 })],
      ["the same kind of event twice", [...op("a", { invoke: 0 }), ...op("a", { invoke: 1 })]],
      [
        "an event of another client or key, or from before invoke",
        [...op("a", { invoke: 0 }), ...op("a", { key: "other", failed: 2 })]
      ],
      [
        "an event of another client or key, or from before invoke",
        [...op("a", { invoke: 0 }), ...op("a", { client: "other", failed: 2 })]
      ],
      ["an event of another client or key, or from before invoke", op("a", { invoke: 5, acquired: 4, token: 1 })],
      ["ended without acquired", op("a", { invoke: 0, release: 1 })],
      ["ended without acquired", op("a", { invoke: 0, released: 1 })],
      ["ended without acquired", op("a", { invoke: 0, lost: 1 })],
      ["acquired and failed", op("a", { invoke: 0, acquired: 1, token: 1, failed: 2 })],
      ["ended before acquired", op("a", { invoke: 0, acquired: 2, token: 1, release: 1 })]
    ]
    for (const [index, [problem, events]] of cases.entries()) {
      it(`finds ${problem} (${index})`, () => {
        assert.deepStrictEqual(LockHistory.check(events), [{ _tag: "Malformed", op: "a", problem }])
      })
    }
  })

  it("checks a long history in little more than linear time", () => {
    const history = (n: number) =>
      Array.from(
        { length: n },
        (_, i) =>
          op(`${i}`, { invoke: i, enqueued: i + 1, acquired: (n + i) * 10, token: i, release: (n + i) * 10 + 9 })
      ).flat()
    const events = history(100_000)
    const started = performance.now()
    assert.deepStrictEqual(LockHistory.check(events), [])
    assert.isBelow(performance.now() - started, 30_000)
    const last = op("late", { invoke: 100_000, acquired: 110_000, token: -1, release: 110_001 })
    assert.deepStrictEqual(tags(LockHistory.check([...events, ...last])), ["NotFifo"])
  })
})

describe("LockHistory.stats", () => {
  it("counts grants per client and finds the longest wait of those granted", () => {
    const { grants, longestWait } = LockHistory.stats([
      op("a", { client: "x", invoke: 0, acquired: 10, token: 1 }),
      op("b", { client: "x", invoke: 5, acquired: 2_000_005, token: 2 }),
      op("c", { client: "y", invoke: 0, acquired: 30, token: 3 }),
      op("d", { client: "z", invoke: 0, failed: 9_000_000 })
    ].flat())
    assert.deepStrictEqual([...grants], [["x", 2], ["y", 1]])
    assert.strictEqual(Duration.toMillis(longestWait), 2)
  })
})

describe("LockHistory.make", () => {
  const temporaryFile = Effect.acquireRelease(
    Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "lock-history-"))),
    (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true }))
  ).pipe(Effect.map((directory) => Path.join(directory, "history.jsonl")))

  it.live("records each event with the time it happened, in memory and, at once, in the file", () =>
    Effect.gen(function*() {
      const file = yield* temporaryFile
      const recorder = yield* LockHistory.make({ client: "c", file })
      const before = process.hrtime.bigint()
      const a = yield* recorder.invoke("k", { permits: 2 })
      yield* a.enqueued
      yield* a.acquired(7)
      yield* a.release(123n)
      yield* a.released
      const b = yield* recorder.invoke("k")
      yield* b.failed
      const c = yield* recorder.invoke("k")
      yield* c.acquired(8)
      yield* c.lost()
      const after = process.hrtime.bigint()

      const events = yield* recorder.events
      const times = [before, ...events.map(({ time }) => time), after]
      assert.deepStrictEqual(times, times.toSorted((x, y) => Number(x - y)))
      assert.deepStrictEqual(
        events.map(({ time: _, ...event }) => event),
        [
          { kind: "invoke", op: a.id, permits: 2 },
          { kind: "enqueued", op: a.id },
          { kind: "acquired", op: a.id, token: 7 },
          { kind: "release", op: a.id, deadline: 123n },
          { kind: "released", op: a.id },
          { kind: "invoke", op: b.id },
          { kind: "failed", op: b.id },
          { kind: "invoke", op: c.id },
          { kind: "acquired", op: c.id, token: 8 },
          { kind: "lost", op: c.id }
        ].map((event) => ({ client: "c", key: "k", ...event }) as never)
      )
      assert.strictEqual(new Set([a.id, b.id, c.id]).size, 3)

      const text = Fs.readFileSync(file, "utf8")
      assert.deepStrictEqual(yield* LockHistory.parse(text), events)
      assert.deepStrictEqual(yield* LockHistory.parse(text.slice(0, -1)), events.slice(0, -1))
      assert.strictEqual((yield* Effect.flip(LockHistory.parse("{}\n" + text)))._tag, "SchemaError")
    }))

  it.live("writes one file from many processes, killed ones included, with comparable times and distinct ids", () =>
    Effect.gen(function*() {
      const file = yield* temporaryFile
      const program = `
        import * as Effect from "effect/Effect"
        import * as LockHistory from ${JSON.stringify(new URL("../src/LockHistory.ts", import.meta.url).href)}
        await Effect.runPromise(Effect.scoped(Effect.gen(function*() {
          const recorder = yield* LockHistory.make({ client: "worker", file: process.argv[1] })
          for (let i = 0; i < 200; i++) yield* (yield* recorder.invoke("k")).failed
          process.kill(process.pid, "SIGKILL")
        })))`
      const run = Effect.callback<NodeJS.Signals | null>((resume) => {
        const child = ChildProcess.spawn(process.execPath, ["--input-type=module", "-e", program, file], {
          cwd: import.meta.dirname,
          stdio: ["ignore", "ignore", "inherit"]
        })
        child.on("exit", (_, signal) => resume(Effect.succeed(signal)))
      })
      const before = process.hrtime.bigint()
      assert.deepStrictEqual(yield* Effect.all([run, run], { concurrency: 2 }), ["SIGKILL", "SIGKILL"])
      const after = process.hrtime.bigint()

      const events = yield* LockHistory.parse(Fs.readFileSync(file, "utf8"))
      assert.strictEqual(events.length, 800)
      assert.isTrue(events.every(({ time }) => before < time && time < after))
      assert.deepStrictEqual(LockHistory.check(events), [])
    }))
})
