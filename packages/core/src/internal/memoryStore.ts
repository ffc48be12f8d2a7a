import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { TicketRefused } from "../LockError.ts"
import type {
  Adoption,
  Attempt,
  Confirmation,
  Grant,
  Held,
  KeyState,
  LimitSet,
  News,
  PermitStore,
  Request,
  Signal,
  Standing,
  Transfer,
  Watch
} from "../LockStore.ts"
import { monotonicUnsafe, nowUnsafe } from "./instant.ts"

/** @internal */
export const make: Effect.Effect<PermitStore["Service"]> = Clock.clockWith((clock) =>
  Effect.sync(() => makeUnsafe(clock))
)

interface Holder {
  readonly token: number
  permits: number
  readonly since: number
  readonly metadata: Readonly<Record<string, string>>
  expiresAt: number
  /** Kept for nobody until it expires (`minHold`), or set aside for whoever adopts it. */
  state: "held" | "kept" | "aside"
  /** Its client is told when somebody queues. */
  isWatched: boolean
}

interface Waiter {
  readonly request: Request
  readonly since: number
  /** When it came, less its head start: the place in the queue. */
  readonly place: number
  signal: Signal | undefined
  /** Done when there is a signal, or a new moment to wait for. */
  wake: Deferred.Deferred<void>
}

interface Key {
  readonly name: string
  /** What those who ask have to say the limit is, and what it is: another one was set. */
  declared: number
  limit: number
  usedAt: number
  readonly holders: Map<string, Holder>
  /** In the order of places. */
  queue: Map<string, Waiter>
  /** At least the last place in the queue. */
  lastPlace: number
  /** The latest moment at which some waiter will look at the clock again. */
  watchedUntil: number
}

/** Milliseconds in the queue that a step of priority is worth. */
const headStart = 10_000

/** How long a limit that was set outlives the last use of its key. */
const limitRetention = 30 * 24 * 3_600_000

const makeUnsafe = (clock: Clock.Clock): PermitStore["Service"] => {
  const keys = new Map<string, Key>()
  // One counter for all keys keeps every key's tokens growing without state for keys that nobody uses.
  let lastToken = 0

  const time = () => monotonicUnsafe(clock)

  const makeKey = (name: string, limit: number): Key => ({
    name,
    declared: limit,
    limit,
    usedAt: time(),
    holders: new Map(),
    queue: new Map(),
    lastPlace: -Infinity,
    watchedUntil: 0
  })

  const grant = (key: Key, request: Request): Grant => {
    const sentAt = nowUnsafe(clock)
    lastToken = Math.max(lastToken + 1, request.floor + 1, Math.floor(sentAt.wall * 1000))
    key.holders.set(request.holderId, {
      token: lastToken,
      permits: request.permits,
      since: sentAt.monotonic,
      metadata: request.metadata,
      expiresAt: sentAt.monotonic + request.ttl,
      state: "held",
      isWatched: false
    })
    return { token: lastToken, ttl: request.ttl, sentAt }
  }

  const free = (key: Key): number => {
    let permits = key.limit
    for (const holder of key.holders.values()) permits -= holder.permits
    return permits
  }

  const nextExpiry = (key: Key): number => {
    let next = Infinity
    for (const holder of key.holders.values()) next = Math.min(next, holder.expiresAt)
    return next
  }

  /** Drops expired holders, then grants to the head of the queue for as long as it fits: nobody passes the head. */
  const pump = (key: Key): void => {
    const now = time()
    for (const [id, holder] of key.holders) {
      if (holder.expiresAt <= now) key.holders.delete(id)
    }
    for (const [id, waiter] of key.queue) {
      const { permits } = waiter.request
      // The limit was lowered: who can never be granted is told so when he asks again.
      if (permits <= key.limit && permits > free(key)) break
      key.queue.delete(id)
      waiter.signal = permits > key.limit
        ? { _tag: "LookAgain" }
        : { _tag: "Granted", grant: grant(key, waiter.request) }
      Deferred.doneUnsafe(waiter.wake, Effect.void)
    }
    const next = nextExpiry(key)
    if (next < key.watchedUntil) {
      key.watchedUntil = next
      for (const waiter of key.queue.values()) {
        Deferred.doneUnsafe(waiter.wake, Effect.void)
        waiter.wake = Deferred.makeUnsafe()
      }
    }
    if (!isIdle(key)) key.usedAt = now
    // A waiter may still look at a key that was dropped and made anew: only the current one is dropped.
    if (
      isIdle(key) && keys.get(key.name) === key && (key.limit === key.declared || now - key.usedAt > limitRetention)
    ) {
      keys.delete(key.name)
    }
  }

  const isIdle = (key: Key): boolean => key.holders.size === 0 && key.queue.size === 0

  const enqueue = (key: Key, request: Request, place: number): Waiter => {
    const since = time()
    const waiter: Waiter = { request, since, place, signal: undefined, wake: Deferred.makeUnsafe() }
    if (place >= key.lastPlace) {
      key.lastPlace = place
      key.queue.set(request.holderId, waiter)
    } else {
      const others = Array.from(key.queue)
      const behind = others.findIndex(([, other]) => other.place > place)
      key.queue = new Map(others.toSpliced(behind === -1 ? others.length : behind, 0, [request.holderId, waiter]))
    }
    for (const [holderId, holder] of key.holders) {
      if (holder.isWatched && holder.state === "held") tell({ _tag: "Wanted", holderId })
    }
    return waiter
  }

  const find = (name: string): Key | undefined => {
    const key = keys.get(name)
    if (key !== undefined) pump(key)
    return key
  }

  const holders = (key: Key): Standing["holders"] => {
    const now = time()
    return Array.from(key.holders, ([holderId, holder]) => ({
      holderId,
      token: holder.token,
      permits: holder.permits,
      heldFor: Math.floor(now - holder.since),
      timeLeft: Math.ceil(holder.expiresAt - now),
      metadata: holder.metadata
    }))
  }

  const standing = (key: Key | undefined, holderId: string): Standing =>
    key === undefined
      ? { holders: [], position: -1, queueLength: 0 }
      : {
        holders: holders(key),
        position: Array.from(key.queue.keys()).indexOf(holderId),
        queueLength: key.queue.size
      }

  const held = (lease: Held): readonly [Key, Holder] | undefined => {
    const key = find(lease.key)
    const holder = key?.holders.get(lease.holderId)
    return key === undefined || holder?.token !== lease.token || holder.state !== "held" ? undefined : [key, holder]
  }

  /** Nothing but time ends a lease whose holder went away, so whoever waits looks again when one runs out. */
  const awaitGrant = (key: Key, waiter: Waiter): Effect.Effect<Signal> =>
    Effect.suspend(() => {
      pump(key)
      if (waiter.signal !== undefined) return Effect.succeed(waiter.signal)
      const next = nextExpiry(key)
      key.watchedUntil = Math.max(key.watchedUntil, next)
      return Deferred.await(waiter.wake).pipe(
        // On a stack of its own: a queue of thousands must not run inside the release that woke its head.
        Effect.andThen(Effect.yieldNow),
        Effect.timeoutOption(Math.max(1, Math.ceil(next - time()))),
        Effect.andThen(awaitGrant(key, waiter))
      )
    })

  const attempt = (request: Request): Effect.Effect<Attempt> =>
    Effect.sync((): Attempt => {
      const { holderId, limit, permits } = request
      let key = find(request.key)
      if (key === undefined || !keys.has(request.key)) key = makeKey(request.key, limit)
      const mine = key.holders.get(holderId)
      if (mine !== undefined) {
        // A duplicate that arrives after the release: what is kept is not its own any more.
        if (mine.state !== "held") return { _tag: "Refused", standing: standing(key, holderId) }
        mine.expiresAt = Math.max(mine.expiresAt, time() + request.ttl)
        return { _tag: "Granted", grant: { token: mine.token, ttl: request.ttl, sentAt: nowUnsafe(clock) } }
      }
      if (key.declared !== limit && isIdle(key)) {
        // What can never be granted declares nothing anew.
        if (permits > limit) return { _tag: "OtherLimit", limit }
        key.declared = key.limit = limit
      }
      if (key.declared !== limit || permits > key.limit) {
        if (key.queue.delete(holderId)) pump(key)
        return { _tag: "OtherLimit", limit: key.limit }
      }
      key.usedAt = time()
      let waiter = key.queue.get(holderId)
      const place = time() - request.priority * headStart
      const [head] = key.queue.values()
      // Who would be the head of the queue has nobody to wait for.
      if (waiter === undefined && permits <= free(key) && (head === undefined || place < head.place)) {
        keys.set(request.key, key)
        return { _tag: "Granted", grant: grant(key, request) }
      }
      if (!request.wait) return { _tag: "Refused", standing: standing(key, holderId) }
      if (waiter === undefined) {
        if (key.queue.size >= request.maxWaiters) return { _tag: "QueueFull", standing: standing(key, holderId) }
        waiter = enqueue(key, request, place)
      }
      return { _tag: "Queued", standing: standing(key, holderId), signal: awaitGrant(key, waiter) }
    })

  const renew = (lease: Held, ttl: number): Effect.Effect<Confirmation> =>
    Effect.sync(() => {
      const found = held(lease)
      if (found === undefined) return "NotHeld"
      found[1].expiresAt = Math.max(found[1].expiresAt, time() + ttl)
      return "Done"
    })

  const release = (lease: Held, keepFor: number): Effect.Effect<Confirmation> =>
    Effect.sync(() => {
      const found = held(lease)
      if (found === undefined) return "NotHeld"
      const [key, holder] = found
      holder.state = "kept"
      holder.expiresAt = time() + keepFor
      pump(key)
      return "Done"
    })

  const abandon = (name: string, holderId: string): Effect.Effect<Standing> =>
    Effect.sync(() => {
      const key = find(name)
      const before = standing(key, holderId)
      if (key !== undefined && (key.queue.delete(holderId) || key.holders.delete(holderId))) pump(key)
      return before
    })

  const listeners = new Set<(news: News) => void>()
  const tell = (news: News): void => {
    for (const listener of listeners) listener(news)
  }

  /** Why tickets can be adopted no more, for as long as somebody may ask: oldest first. */
  const spent = new Map<string, { readonly reason: TicketRefused["reason"]; readonly until: number }>()

  const spend = (ticketId: string, reason: TicketRefused["reason"]): void => {
    const now = time()
    for (const [id, { until }] of spent) {
      if (until > now) break
      spent.delete(id)
    }
    spent.set(ticketId, { reason, until: now + 600_000 })
  }

  const takeover = (request: Request): Effect.Effect<Grant> =>
    Effect.sync(() => {
      const key = find(request.key) ?? makeKey(request.key, request.limit)
      const mine = key.holders.get(request.holderId)
      if (mine?.state === "held") {
        mine.expiresAt = Math.max(mine.expiresAt, time() + request.ttl)
        return { token: mine.token, ttl: request.ttl, sentAt: nowUnsafe(clock) }
      }
      const evicted = Array.from(key.holders)
      key.holders.clear()
      if (key.declared !== request.limit) key.declared = key.limit = request.limit
      keys.set(request.key, key)
      const granted = grant(key, request)
      for (const [holderId, { state }] of evicted) {
        if (state === "aside") spend(holderId, "TakenOver")
        if (state === "held") tell({ _tag: "TakenOver", holderId })
      }
      pump(key)
      return granted
    })

  const transfer = (lease: Held, ticketId: string): Effect.Effect<Transfer> =>
    Effect.sync(() => {
      const found = held(lease)
      const key = find(lease.key)
      const aside = key?.holders.get(ticketId)
      if (aside?.state === "aside") return { _tag: "Done", timeLeft: aside.expiresAt - time() }
      if (found === undefined) return { _tag: "NotHeld" }
      found[0].holders.delete(lease.holderId)
      found[0].holders.set(ticketId, { ...found[1], state: "aside" })
      return { _tag: "Done", timeLeft: found[1].expiresAt - time() }
    })

  const adopt = (ticket: Held, request: Request): Effect.Effect<Adoption> =>
    Effect.sync((): Adoption => {
      const key = find(ticket.key)
      const mine = key?.holders.get(request.holderId)
      if (mine?.state === "held") {
        mine.expiresAt = Math.max(mine.expiresAt, time() + request.ttl)
        return { _tag: "Granted", grant: { token: mine.token, ttl: request.ttl, sentAt: nowUnsafe(clock) } }
      }
      const aside = key?.holders.get(ticket.holderId)
      if (key === undefined || aside?.state !== "aside" || aside.token !== ticket.token) {
        return { _tag: "Refused", reason: spent.get(ticket.holderId)?.reason ?? "Expired" }
      }
      key.holders.delete(ticket.holderId)
      spend(ticket.holderId, "Adopted")
      return { _tag: "Granted", grant: grant(key, { ...request, permits: aside.permits }) }
    })

  const shrink = (lease: Held, permits: number): Effect.Effect<Confirmation> =>
    Effect.sync(() => {
      const found = held(lease)
      if (found === undefined) return "NotHeld"
      const [key, holder] = found
      holder.permits = Math.min(holder.permits, Math.max(1, permits))
      pump(key)
      return "Done"
    })

  const setLimit = (name: string, declared: number, limit: number): Effect.Effect<LimitSet> =>
    Effect.sync(() => {
      const key = find(name) ?? makeKey(name, declared)
      if (key.declared !== declared && !isIdle(key)) return { _tag: "OtherLimit", limit: key.limit }
      key.declared = declared
      key.limit = limit
      key.usedAt = time()
      keys.set(name, key)
      pump(key)
      return { _tag: "Done" }
    })

  const watch = (lease: Held): Effect.Effect<Watch> =>
    Effect.sync(() => {
      const found = held(lease)
      if (found === undefined) return { _tag: "NotHeld" }
      const [key, holder] = found
      holder.isWatched = true
      return { _tag: "Done", isWanted: key.queue.size > 0 }
    })

  const onNews = (listener: (news: News) => void): Effect.Effect<void, never, Scope.Scope> =>
    Effect.acquireRelease(
      Effect.sync(() => void listeners.add(listener)),
      () => Effect.sync(() => listeners.delete(listener))
    )

  const inspect = (name: string): Effect.Effect<KeyState> =>
    Effect.sync(() => {
      const key = find(name)
      if (key === undefined) return { key: name, holders: [], waiters: [] }
      const now = time()
      const waiters = Array.from(key.queue.values(), ({ request, since }) => ({
        holderId: request.holderId,
        permits: request.permits,
        waitedFor: Math.floor(now - since),
        metadata: request.metadata
      }))
      return { key: name, ...isIdle(key) ? undefined : { limit: key.limit }, holders: holders(key), waiters }
    })

  const list = (prefix: string): Effect.Effect<ReadonlyArray<string>> =>
    Effect.sync(() => Array.from(keys.keys()).filter((name) => name.startsWith(prefix)))

  return {
    name: "memory",
    driftFactor: 0,
    identity: {},
    attempt,
    renew,
    release,
    abandon,
    takeover,
    transfer,
    adopt,
    shrink,
    setLimit,
    watch,
    onNews,
    inspect,
    list
  }
}
