/** Thousands of random steps of many who want the permits of a few keys, on whatever store. */
import { assert } from "@effect/vitest"
import { Clock, Effect, Fiber, Random } from "effect"
import * as Crypto from "node:crypto"
import { LockStore, type Permits } from "../../src/index.ts"

export interface Client {
  readonly permits: Permits.Permits["Service"]
  readonly store: LockStore.PermitStore["Service"]
}

const limit = 7
const keys = ["a", "b", "c", "d"]
const workers = 48

/** Who is inside: at no instant more than there are permits. */
class Room {
  most = 0
  readonly #inside = new Set<{ readonly permits: number; readonly isValid: () => boolean }>()

  /** `isValid` where nobody tells of the end. */
  enter(permits: number, isValid = () => true): { readonly permits: number } {
    let sum = permits
    for (const one of this.#inside) {
      if (one.isValid()) sum += one.permits
      else this.#inside.delete(one)
    }
    assert.isAtMost(sum, limit)
    this.most = Math.max(this.most, sum)
    const guest = { permits, isValid }
    this.#inside.add(guest)
    return guest
  }

  leave(guest: { readonly permits: number }): void {
    this.#inside.delete(guest as never)
  }
}

const chance = (probability: number) => Effect.map(Random.next, (next) => next < probability)

/** Acquires, releases, interrupts, shrinks and lets run out, until so many steps are taken; then every permit is back. */
export const takeSteps = Effect.fnUntraced(function*(clients: ReadonlyArray<Client>, total: number) {
  const clock = yield* Clock.clockWith(Effect.succeed)
  const rooms = new Map(keys.map((key) => [key, new Room()]))
  const steps = { acquired: 0, released: 0, interrupted: 0, ranOut: 0, shrunk: 0 }
  const taken = () => Object.values(steps).reduce((sum, count) => sum + count)
  const pause = Effect.flatMap(Random.nextIntBetween(0, 8), (n) => n < 5 ? Effect.yieldNow : Effect.sleep(n - 4))

  const request = (key: string, permits: number, ttl: number): LockStore.Request => ({
    key,
    holderId: Crypto.randomUUID(),
    ttl,
    permits,
    limit,
    wait: true,
    priority: 0,
    maxWaiters: Infinity,
    floor: 0,
    metadata: {}
  })

  const awaitGrant = Effect.fnUntraced(function*({ store }: Client, wish: LockStore.Request) {
    while (true) {
      const answer = yield* store.attempt(wish)
      if (answer._tag === "Granted") return answer.grant
      assert(answer._tag === "Queued")
      const signal = yield* answer.signal
      if (signal._tag === "Granted") return signal.grant
    }
  })

  /** In, and out again before anything is given back. */
  const stay = (room: Room, permits: number) =>
    Effect.acquireUseRelease(
      Effect.sync(() => room.enter(permits)),
      () => pause,
      (guest) => Effect.sync(() => room.leave(guest))
    )

  const work = Effect.fnUntraced(function*({ permits: service }: Client, key: string, permits: number, fewer: number) {
    const room = rooms.get(key)!
    const lease = yield* service.acquire({ key, permits, limit, needs: permits, isShared: false })
    steps.acquired++
    yield* stay(room, permits)
    if (fewer > 0) {
      yield* service.shrink(lease, fewer)
      steps.shrunk++
      yield* stay(room, fewer)
    }
    steps.released++
  }, Effect.scoped)

  /** Somebody who takes permits and is never heard of again. */
  const vanish = Effect.fnUntraced(function*(client: Client, key: string, permits: number) {
    const wish = request(key, permits, 40)
    const { sentAt, ttl } = yield* awaitGrant(client, wish)
    const isValid = () => LockStore.elapsedUnsafe(sentAt, clock) < ttl * (1 - client.store.driftFactor)
    if (isValid()) rooms.get(key)!.enter(permits, isValid)
    yield* Effect.sleep(60)
    steps.ranOut++
    yield* client.store.abandon(key, wish.holderId)
  })

  const worker = Effect.gen(function*() {
    while (taken() < total) {
      const client = yield* Random.choice(clients)
      const key = yield* Random.choice(keys)
      const permits = yield* Random.nextIntBetween(1, limit)
      if (yield* chance(0.02)) {
        yield* vanish(client, key, permits)
      } else if (yield* chance(0.25)) {
        const fiber = yield* Effect.forkChild(work(client, key, permits, 0))
        yield* pause
        yield* Fiber.interrupt(fiber)
        steps.interrupted++
      } else {
        yield* work(client, key, permits, (yield* chance(0.2)) ? Math.max(1, permits - 2) : 0)
      }
    }
  })
  yield* Effect.forEach(Array.from({ length: workers }), () => worker, { concurrency: "unbounded", discard: true })

  for (const [key, room] of rooms) {
    // The check is only worth what it had to look at.
    assert.strictEqual(room.most, limit, `most permits in use of ${key}`)
    const all = request(key, limit, 10_000)
    const { token } = yield* awaitGrant(clients[0]!, all)
    const { holders, waiters } = yield* clients[0]!.store.inspect(key)
    assert.deepStrictEqual([holders.map(({ holderId }) => holderId), waiters], [[all.holderId], []])
    assert.strictEqual(yield* clients[0]!.store.release({ ...all, token }, 0), "Done")
    assert.deepStrictEqual(yield* clients[0]!.store.inspect(key), { key, holders: [], waiters: [] })
  }
  for (const [what, count] of Object.entries(steps)) assert.isAbove(count, total / 200, what)
})
