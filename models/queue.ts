/**
 * The queue of one server: `scripts.ts` and `waitingRoom.ts` of packages/redis, `holding.ts` of packages/core. One key, a
 * few permits, a few waiters. Names in backticks are those of the code.
 *
 * Time is in heartbeats. What is sent arrives at once, unless the network makes it late: then it arrives at any time, or
 * never. A client may pause and go on, or die. How often each of these happens is bounded, so that afterwards everybody must
 * get through.
 */
import type { Model, Step } from "./checker.ts"

/** How it is done. What else could have been done is what a checker must be able to find. */
export interface Rules {
  /** A pushed grant counts from the stamp that the server gives back with it, or from when it arrives. */
  readonly pushCountsFrom: "stamp" | "receipt"
  /** An offer that a heartbeat tells of counts from when that was sent, or from its reply. */
  readonly pollCountsFrom: "sending" | "receipt"
  /** Whether the replies to heartbeats tell of offers and of what the server has forgotten. */
  readonly heartbeatPolls: boolean
  /** Whether a heartbeat prolongs all offers to its client. */
  readonly heartbeatRefreshesOffers: boolean
  readonly offersExpire: boolean
  /** What abandoning does with a grant. */
  readonly abandonedGrant: "passed on" | "removed" | "kept"
  /** A waiter that asks again tells which place it had. */
  readonly placeIsKept: boolean
  /** Whether the store adds up the permits of those who hold, or how many they are. */
  readonly counts: "permits" | "holders"
  /** Who fits is granted even where the head of the queue does not. */
  readonly headIsPassed: boolean
  /** What a head start is worth: everything, or nothing. */
  readonly headStarts: boolean
  /** Whether one who fits, and whom his head start makes the head of the queue, is granted when he asks. */
  readonly newHeadIsGranted: boolean
}

export const rules: Rules = {
  pushCountsFrom: "stamp",
  pollCountsFrom: "sending",
  heartbeatPolls: true,
  heartbeatRefreshesOffers: false,
  offersExpire: true,
  abandonedGrant: "passed on",
  placeIsKept: true,
  counts: "permits",
  headIsPassed: false,
  headStarts: true,
  newHeadIsGranted: true
}

/** What a waiter asks for. */
interface Wish {
  readonly permits: number
  /** He stands before all who have none. */
  readonly hasHeadStart?: boolean
  /** Asks while that one is inside, who stays there until this one is over: a reader that becomes a writer. */
  readonly within?: number
}

export interface Setting {
  /** Which client each waiter belongs to. */
  readonly waiters: ReadonlyArray<number>
  /** How many permits there are, and what each waiter wants: one of one, where nothing is said. */
  readonly limit?: number
  readonly wishes?: ReadonlyArray<Wish>
  /** Messages that are late, for ever perhaps. */
  readonly late: number
  /** Commands that are executed a second time. */
  readonly twice: number
  readonly interrupts: number
  readonly pauses: number
  readonly deaths: number
}

const ttl = 4
const offer = 3
const liveness = 3

interface Grant {
  readonly id: number
  readonly token: number
  readonly expiry: number
  readonly mode: "held" | "offered"
}

/** What the keys `L`, `Q`, `W` and `C` say. */
interface Server {
  grants: ReadonlyArray<Grant>
  queue: ReadonlyArray<{ readonly id: number; readonly ticket: number }>
  clients: ReadonlyArray<{ readonly aliveUntil: number; readonly stamp: number }>
  fence: number
  ticket: number
}

interface Waiter {
  readonly phase: "new" | "asking" | "waiting" | "confirming" | "inside" | "over"
  /** When the command was sent whose reply is awaited; none is when `undefined`. */
  readonly sentAt: number | undefined
  /** In `waiters` of the waiting room, from `enter` to `leave`, and in its `queues`: there is a heartbeat for it. */
  readonly inRoom: boolean
  readonly isQueued: boolean
  readonly ticket: number
  readonly signal: PushedGrant | "LookAgain" | undefined
  readonly token: number
  readonly validUntil: number
  /** The first place it was given. Only for the invariant. */
  readonly firstTicket: number
}

interface PushedGrant {
  readonly token: number
  readonly sentAt: number
  readonly ttl: number
}

interface Client {
  readonly state: "running" | "paused" | "dead"
  readonly lastBeat: number
}

type Command =
  | { readonly _tag: "attempt"; readonly id: number; readonly place: number; readonly sentAt: number }
  | { readonly _tag: "renew"; readonly id: number; readonly token: number; readonly sentAt: number }
  | { readonly _tag: "release"; readonly id: number; readonly token: number }
  | { readonly _tag: "abandon"; readonly id: number }
  | {
    readonly _tag: "heartbeat"
    readonly client: number
    readonly sentAt: number
    readonly ids: ReadonlyArray<number>
  }

type Reply =
  | { readonly _tag: "granted"; readonly id: number; readonly token: number; readonly sentAt: number }
  | { readonly _tag: "queued"; readonly id: number; readonly ticket: number; readonly sentAt: number }
  | { readonly _tag: "renewed"; readonly id: number; readonly done: boolean; readonly sentAt: number }
  | {
    readonly _tag: "offers"
    readonly client: number
    readonly sentAt: number
    readonly offers: ReadonlyArray<{ readonly id: number; readonly token: number; readonly left: number }>
    readonly unknown: ReadonlyArray<number>
  }
  | { readonly _tag: "none" }

type Message =
  | { readonly _tag: "command"; readonly command: Command }
  | { readonly _tag: "reply"; readonly reply: Reply }
  | {
    readonly _tag: "push"
    readonly id: number
    readonly token: number
    readonly offer: number
    readonly stamp: number
    readonly isLate: boolean
  }

interface State {
  now: number
  server: Server
  waiters: ReadonlyArray<Waiter>
  clients: ReadonlyArray<Client>
  network: ReadonlyArray<Message>
  /** Waiters, as a set of bits, whose attempt was executed when they did not wait any more. Only for the invariants. */
  orphans: number
  /** Somebody was granted while somebody else had a better place. Only for the invariants. */
  hasPassed: boolean
  late: number
  twice: number
  interrupts: number
  pauses: number
  deaths: number
}

export const model = (rules: Rules, setting: Setting): Model<State> => {
  const clientOf = (id: number): number => setting.waiters[id]!
  const { limit = 1, wishes } = setting
  const wishOf = (id: number): Wish => wishes?.[id] ?? { permits: 1 }
  const used = ({ grants }: Server): number =>
    rules.counts === "permits" ? grants.reduce((sum, { id }) => sum + wishOf(id).permits, 0) : grants.length
  const fits = (server: Server, id: number): boolean => {
    const wanted = rules.counts === "permits" ? wishOf(id).permits : 1
    return used(server) + wanted <= limit
  }
  const without = ({ grants }: Server, id: number): ReadonlyArray<Grant> => grants.filter((it) => it.id !== id)

  // ---- the server: scripts.ts

  const dropExpired = (server: Server, now: number): void => {
    server.grants = server.grants.filter(({ expiry, mode }) =>
      expiry > now || (mode === "offered" && !rules.offersExpire)
    )
  }

  const isAlive = ({ now, server }: State, id: number): boolean => server.clients[clientOf(id)]!.aliveUntil > now

  const grant = (state: State, id: number, place: number, ttl: number, mode: Grant["mode"]): number => {
    const { now, server } = state
    state.hasPassed ||= server.queue.some((it) => it.id !== id && it.ticket < place && isAlive(state, it.id))
    const token = ++server.fence
    server.grants = [...server.grants, { id, token, expiry: now + ttl, mode }]
    return token
  }

  const pump = (state: State): void => {
    const { server } = state
    for (const { id, ticket } of server.queue) {
      if (isAlive(state, id)) {
        if (!fits(server, id)) {
          if (rules.headIsPassed) continue
          return
        }
        const token = grant(state, id, ticket, offer, "offered")
        const { stamp } = server.clients[clientOf(id)]!
        state.network = [...state.network, { _tag: "push", id, token, offer, stamp, isLate: false }]
      }
      server.queue = server.queue.filter((it) => it.id !== id)
    }
  }

  const alive = (state: State, client: number, stamp: number): void => {
    state.server.clients = state.server.clients.with(client, { aliveUntil: state.now + liveness, stamp })
  }

  const execute = (state: State, command: Command): Reply => {
    const { now, server } = state
    dropExpired(server, now)
    const mine = "id" in command ? server.grants.find(({ id }) => id === command.id) : undefined
    switch (command._tag) {
      case "attempt": {
        const { id, place, sentAt } = command
        if (!state.waiters[id]!.inRoom) state.orphans |= 1 << id
        pump(state)
        const mine = server.grants.find((it) => it.id === id)
        if (mine !== undefined) {
          server.grants = [...without(server, id), { ...mine, expiry: Math.max(mine.expiry, now + ttl), mode: "held" }]
          return { _tag: "granted", id, token: mine.token, sentAt }
        }
        let ticket = server.queue.find((it) => it.id === id)?.ticket
        if (ticket === undefined) {
          server.ticket++
          ticket = place !== 0
            ? place
            : server.ticket - (wishOf(id).hasHeadStart === true && rules.headStarts ? 1000 : 0)
          const [head] = server.queue
          const isFirst = head === undefined || (rules.newHeadIsGranted && ticket < head.ticket) || rules.headIsPassed
          if (isFirst && fits(server, id)) {
            return { _tag: "granted", id, token: grant(state, id, ticket, ttl, "held"), sentAt }
          }
          server.queue = [...server.queue, { id, ticket }].toSorted((a, b) => a.ticket - b.ticket)
          const waiter = state.waiters[id]!
          if (waiter.firstTicket === 0) state.waiters = state.waiters.with(id, { ...waiter, firstTicket: ticket })
        }
        alive(state, clientOf(id), sentAt)
        return { _tag: "queued", id, ticket, sentAt }
      }
      case "renew": {
        const done = mine?.token === command.token
        if (done) {
          const { id } = command
          server.grants = [...without(server, id), { ...mine, expiry: Math.max(mine.expiry, now + ttl), mode: "held" }]
        }
        pump(state)
        return { _tag: "renewed", id: command.id, done, sentAt: command.sentAt }
      }
      case "release": {
        if (mine?.token === command.token) server.grants = without(server, command.id)
        pump(state)
        return { _tag: "none" }
      }
      case "abandon": {
        server.queue = server.queue.filter((it) => it.id !== command.id)
        if (rules.abandonedGrant !== "kept") server.grants = without(server, command.id)
        if (rules.abandonedGrant !== "removed") pump(state)
        return { _tag: "none" }
      }
      case "heartbeat": {
        const { client, ids, sentAt } = command
        if (server.queue.length > 0 || rules.heartbeatRefreshesOffers) alive(state, client, sentAt)
        pump(state)
        const isOffer = ({ id, mode }: Grant) => mode === "offered" && clientOf(id) === client
        if (rules.heartbeatRefreshesOffers) {
          server.grants = server.grants.map((grant) => isOffer(grant) ? { ...grant, expiry: now + offer } : grant)
        }
        return {
          _tag: "offers",
          client,
          sentAt,
          offers: server.grants.filter(isOffer).map(({ expiry, id, token }) => ({ id, token, left: expiry - now })),
          unknown: ids.filter((id) => ![...server.grants, ...server.queue].some((it) => it.id === id))
        }
      }
    }
  }

  // ---- the clients: waitingRoom.ts and holding.ts

  const update = (state: State, id: number, change: Partial<Waiter>): void => {
    state.waiters = state.waiters.with(id, { ...state.waiters[id]!, ...change })
  }

  const leave = (state: State, id: number): void => update(state, id, { inRoom: false, isQueued: false })

  /** `granted` of the waiting room: a grant that was pushed, or found by a heartbeat. */
  const granted = (state: State, id: number, grant: PushedGrant): void => {
    const { inRoom, signal } = state.waiters[id]!
    if (!inRoom) return
    leave(state, id)
    update(state, id, { signal: signal ?? grant, ...(rules.placeIsKept ? undefined : { ticket: 0 }) })
  }

  /** `ifFresh`, and `grant` of the holding. */
  const proceed = (state: State, id: number, { sentAt, token, ttl }: PushedGrant): void =>
    update(
      state,
      id,
      state.now < sentAt + ttl
        ? { phase: "inside", token, validUntil: sentAt + ttl, sentAt: undefined, signal: undefined }
        : { phase: "confirming", token, sentAt: undefined, signal: undefined }
    )

  const receive = (state: State, reply: Reply): void => {
    switch (reply._tag) {
      case "granted": {
        const { phase, sentAt } = state.waiters[reply.id]!
        if (phase === "over") return abandonAgain(state, reply.id)
        if (phase !== "asking" || sentAt !== reply.sentAt) return
        leave(state, reply.id)
        return proceed(state, reply.id, { token: reply.token, sentAt: reply.sentAt, ttl })
      }
      case "queued": {
        const { inRoom, phase, sentAt } = state.waiters[reply.id]!
        if (phase === "over") return abandonAgain(state, reply.id)
        if (phase !== "asking" || sentAt !== reply.sentAt) return
        const { id, ticket } = reply
        return update(state, id, { phase: "waiting", sentAt: undefined, ticket, isQueued: inRoom })
      }
      case "renewed": {
        const { phase, sentAt, token, validUntil } = state.waiters[reply.id]!
        if (sentAt !== reply.sentAt) return
        const { done, id } = reply
        if (phase === "confirming") {
          if (done && state.now < sentAt + ttl) return proceed(state, id, { token, sentAt, ttl })
          return askAgain(state, id)
        }
        if (phase !== "inside") return
        if (!done) return lose(state, id)
        return update(state, id, {
          sentAt: undefined,
          validUntil: state.now < validUntil ? Math.max(validUntil, sentAt + ttl) : validUntil
        })
      }
      case "offers": {
        const { client, offers, sentAt, unknown } = reply
        if (!rules.heartbeatPolls || state.clients[client]!.state === "dead") return
        const from = rules.pollCountsFrom === "sending" ? sentAt : state.now
        for (const { id, left, token } of offers) granted(state, id, { token, ttl: left, sentAt: from })
        for (const id of unknown) {
          const { isQueued, signal } = state.waiters[id]!
          if (isQueued) update(state, id, { signal: signal ?? "LookAgain" })
        }
        return
      }
    }
  }

  /** `onUnanswered`: the answer to an attempt comes when nobody waits for it any more. */
  const abandonAgain = (state: State, id: number): void => {
    if (state.clients[clientOf(id)]!.state === "dead") return
    execute(state, { _tag: "abandon", id })
    state.orphans &= ~(1 << id)
  }

  /** A lease that is lost tidies up in the background: at once, here. */
  const lose = (state: State, id: number): void => {
    update(state, id, { phase: "over", sentAt: undefined })
    execute(state, { _tag: "abandon", id })
  }

  /** `attempt` of the store: the waiter enters the room before its command is sent. */
  const askAgain = (state: State, id: number): void =>
    update(state, id, { phase: "asking", sentAt: undefined, inRoom: true, signal: undefined })

  /** Whether anybody is left for whom it would make a difference. */
  const matters = ({ clients, waiters }: State, message: Message): boolean => {
    const isAwaited = (id: number) => !["inside", "over"].includes(waiters[id]!.phase)
    if (message._tag === "command") return true
    if (message._tag === "push") return isAwaited(message.id)
    const { reply } = message
    if (reply._tag === "none") return false
    if (reply._tag !== "offers") {
      const { phase, sentAt } = waiters[reply.id]!
      return sentAt === reply.sentAt || (phase === "over" && reply._tag !== "renewed")
    }
    const { client, offers, unknown } = reply
    return clients[client]!.state !== "dead" && (offers.some(({ id }) => isAwaited(id)) || unknown.some(isAwaited))
  }

  // ---- what can happen

  const copy = (state: State): State => ({ ...state, server: { ...state.server } })

  const steps = (state: State): ReadonlyArray<Step<State>> => {
    const steps: Array<Step<State>> = []
    const { now, waiters } = state
    // Nothing that a running client has to do by itself waits until tomorrow.
    let isUrgent = false

    const step = (name: string, change: (next: State) => void): void => {
      const next = copy(state)
      change(next)
      next.network = next.network.filter((message) => matters(next, message))
      steps.push([name, next])
    }

    /** A command whose reply comes at once; or it, or its reply, is late; or it is executed once more later on. */
    const call = (name: string, command: Command, before: (next: State) => void): void => {
      step(name, (next) => {
        before(next)
        receive(next, execute(next, command))
      })
      if (state.late > 0) {
        step(`${name}, command late`, (next) => {
          next.late--
          before(next)
          next.network = [...next.network, { _tag: "command", command }]
        })
        // Nobody waits for the replies to these.
        if (command._tag !== "release" && command._tag !== "abandon") {
          step(`${name}, reply late`, (next) => {
            next.late--
            before(next)
            const reply = execute(next, command)
            next.network = [...next.network, { _tag: "reply", reply }]
          })
        }
      }
      if (state.twice > 0 && command._tag === "attempt") {
        step(`${name}, and a duplicate`, (next) => {
          next.twice--
          before(next)
          next.network = [...next.network, { _tag: "command", command }]
          receive(next, execute(next, command))
        })
      }
    }

    waiters.forEach((waiter, id) => {
      if (state.clients[clientOf(id)]!.state !== "running") return
      const { phase, sentAt, signal, token, validUntil } = waiter
      const isAnswerMissing = sentAt !== undefined && (phase === "asking" || phase === "confirming")
      const gone = (next: State) => {
        leave(next, id)
        update(next, id, { phase: "over", sentAt: undefined, signal: undefined })
      }
      // Waiters of one client are interchangeable: they begin in order.
      const isNext = wishes !== undefined ||
        waiters.findIndex((it, w) => it.phase === "new" && clientOf(w) === clientOf(id)) === id
      const { within } = wishOf(id)
      const around = within === undefined ? undefined : waiters[within]!
      if (around?.phase === "over" && phase !== "over") {
        isUrgent = true
        if (phase === "new") step(`${id} has nobody to be within`, gone)
        else call(`${id} ends with ${within}`, { _tag: "abandon", id }, gone)
        return
      }
      if (phase === "new" && isNext && (around === undefined || around.phase === "inside")) {
        const command = { _tag: "attempt", id, place: 0, sentAt: now } as const
        call(`${id} asks`, command, (next) => {
          askAgain(next, id)
          update(next, id, { sentAt: now })
        })
      }
      if (phase === "asking" && sentAt === undefined) {
        isUrgent = true
        const command = { _tag: "attempt", id, place: waiter.ticket, sentAt: now } as const
        call(`${id} asks again`, command, (next) => update(next, id, { sentAt: now }))
      }
      if (phase === "waiting" && signal !== undefined) {
        isUrgent = true
        step(`${id} is told`, (next) => signal === "LookAgain" ? askAgain(next, id) : proceed(next, id, signal))
      }
      if (phase === "confirming" && sentAt === undefined) {
        isUrgent = true
        const command = { _tag: "renew", id, token, sentAt: now } as const
        call(`${id} confirms`, command, (next) => update(next, id, { sentAt: now }))
      }
      // `commandTimeout`: the acquisition fails, unless it has waited before (`bearOutage`).
      if (isAnswerMissing) {
        call(`${id} gets no answer and leaves`, { _tag: "abandon", id }, gone)
        if (phase === "asking" && waiter.ticket !== 0 && sentAt < now) {
          step(`${id} gets no answer and tries again`, (next) => askAgain(next, id))
        }
      }
      if (state.interrupts > 0 && phase !== "new" && phase !== "inside" && phase !== "over" && !isAnswerMissing) {
        call(`${id} is interrupted`, { _tag: "abandon", id }, (next) => {
          next.interrupts--
          gone(next)
        })
      }
      if (phase !== "inside") return
      if (now < validUntil) {
        if (waiters.every((it, w) => it.phase === "over" || wishOf(w).within !== id)) {
          call(
            `${id} releases`,
            { _tag: "release", id, token },
            (next) => update(next, id, { phase: "over", sentAt: undefined })
          )
        }
        if (validUntil < now + ttl && sentAt !== now) {
          const command = { _tag: "renew", id, token, sentAt: now } as const
          call(`${id} renews`, command, (next) => update(next, id, { sentAt: now }))
        }
      } else {
        isUrgent = true
        step(`${id} has lost it`, (next) => lose(next, id))
      }
    })

    state.clients.forEach((client, c) => {
      if (client.state === "dead") return
      if (client.state === "paused") {
        step(`client ${c} goes on`, (next) => next.clients = next.clients.with(c, { ...client, state: "running" }))
        return
      }
      const ids = waiters.flatMap(({ isQueued }, id) => isQueued && clientOf(id) === c ? [id] : [])
      if (ids.length > 0 && client.lastBeat < now) {
        isUrgent = true
        const command = { _tag: "heartbeat", client: c, sentAt: now, ids } as const
        call(`client ${c} beats`, command, (next) => next.clients = next.clients.with(c, { ...client, lastBeat: now }))
      }
      const isBusy = waiters.some(({ phase }, id) => clientOf(id) === c && phase !== "new" && phase !== "over")
      if (state.pauses > 0 && isBusy) {
        step(`client ${c} pauses`, (next) => {
          next.pauses--
          next.clients = next.clients.with(c, { ...client, state: "paused" })
        })
      }
      if (state.deaths > 0 && isBusy) {
        step(`client ${c} dies`, (next) => {
          next.deaths--
          next.clients = next.clients.with(c, { ...client, state: "dead" })
          waiters.forEach((_, id) => {
            if (clientOf(id) === c) {
              update(next, id, { phase: "over", sentAt: undefined, inRoom: false, isQueued: false })
            }
          })
        })
      }
    })

    state.network.forEach((message, index) => {
      const network = state.network.toSpliced(index, 1)
      switch (message._tag) {
        case "command":
          step(`late ${message.command._tag} is executed`, (next) => {
            next.network = network
            receive(next, execute(next, message.command))
          })
          step(`late ${message.command._tag} is executed, reply lost`, (next) => {
            next.network = network
            execute(next, message.command)
          })
          return
        case "reply": {
          const { reply } = message
          const c = reply._tag === "none" ? 0 : reply._tag === "offers" ? reply.client : clientOf(reply.id)
          if (state.clients[c]!.state === "paused") return
          step(`late reply ${reply._tag} arrives`, (next) => {
            next.network = network
            receive(next, reply)
          })
          return
        }
        case "push": {
          const { id, isLate, stamp, token } = message
          const client = state.clients[clientOf(id)]!
          if (client.state === "paused") return
          if (!isLate) isUrgent = true
          step(`${isLate ? "late " : ""}push to ${id} arrives`, (next) => {
            next.network = network
            if (client.state === "dead") return
            granted(next, id, { token, ttl: offer, sentAt: rules.pushCountsFrom === "stamp" ? stamp : now })
          })
          if (!isLate && state.late > 0) {
            step(`push to ${id} is late`, (next) => {
              next.late--
              next.network = next.network.with(index, { ...message, isLate: true })
            })
          }
        }
      }
    })

    if (!isUrgent) step("time passes", (next) => next.now++)
    return steps
  }

  return {
    initial: [{
      now: 1,
      server: {
        grants: [],
        queue: [],
        clients: Array.from(new Set(setting.waiters), () => ({ aliveUntil: 0, stamp: 0 })),
        fence: 0,
        ticket: 0
      },
      waiters: setting.waiters.map(() => ({
        phase: "new",
        sentAt: undefined,
        inRoom: false,
        isQueued: false,
        ticket: 0,
        signal: undefined,
        token: 0,
        validUntil: 0,
        firstTicket: 0
      })),
      clients: Array.from(new Set(setting.waiters), () => ({ state: "running", lastBeat: 0 })),
      network: [],
      orphans: 0,
      hasPassed: false,
      late: setting.late,
      twice: setting.twice,
      interrupts: setting.interrupts,
      pauses: setting.pauses,
      deaths: setting.deaths
    }],
    steps,
    key: keyOf,
    invariants: {
      "within the limit": ({ now, waiters }) =>
        waiters.reduce(
          (sum, { phase, validUntil }, id) => phase === "inside" && now < validUntil ? sum + wishOf(id).permits : sum,
          0
        ) <= limit,
      // Nobody but the head: who is behind one that died may have to wait for the next look.
      "never free while somebody waits": (state) => {
        const [head] = state.server.queue
        return head === undefined || !isAlive(state, head.id) || !fits(state.server, head.id)
      },
      "nobody is passed": ({ hasPassed }) => !hasPassed,
      "who has left has left nothing": ({ clients, network, orphans, server, waiters }) =>
        waiters.every(({ phase }, id) =>
          phase !== "over" || clients[clientOf(id)]!.state === "dead" || isIn(orphans, id) ||
          network.some((it) => it._tag === "command" && "id" in it.command && it.command.id === id) ||
          ![...server.grants, ...server.queue].some((it) => it.id === id)
        ),
      "places are kept": ({ orphans, server, waiters }) =>
        server.queue.every(({ id, ticket }) => ticket === waiters[id]!.firstTicket || isIn(orphans, id))
    },
    liveness: {
      goal: ({ waiters }) => waiters.every(({ phase }) => phase === "over"),
      // Work ends, time passes, clients do what they have to do; only what is late need not arrive.
      fair: (step) => !/ (late|duplicate|interrupted|pauses|dies|renews)\b|^late /.test(step)
    }
  }
}

const isIn = (set: number, id: number): boolean => (set & 1 << id) !== 0

/** Only how far off a moment is counts, and the order of tokens and tickets. */
const keyOf = (state: State): string => {
  const { clients, network, now, orphans, server, waiters } = state
  const ahead = (moment: number) => Math.max(0, moment - now)
  const ago = (moment: number | undefined) => moment === undefined ? "-" : Math.min(ttl, now - moment)
  const tokens = new Set<number>()
  const tickets = new Set<number>()
  const pending = (waiter: Waiter) => waiter.phase !== "over" && waiter.phase !== "new"
  for (const { token } of server.grants) tokens.add(token)
  for (const { id, ticket } of server.queue) tickets.add(ticket).add(waiters[id]!.firstTicket)
  for (const waiter of waiters) {
    if (!pending(waiter)) continue
    tokens.add(waiter.token)
    tickets.add(waiter.ticket).add(waiter.firstTicket)
    if (typeof waiter.signal === "object") tokens.add(waiter.signal.token)
  }
  for (const message of network) {
    if (message._tag === "push") tokens.add(message.token)
    else if (message._tag === "command") {
      if ("token" in message.command) tokens.add(message.command.token)
      if ("place" in message.command) tickets.add(message.command.place)
    } else {
      const { reply } = message
      if ("token" in reply) tokens.add(reply.token)
      if ("ticket" in reply) tickets.add(reply.ticket)
      if ("offers" in reply) { for (const { token } of reply.offers) tokens.add(token) }
    }
  }
  tokens.add(0)
  tickets.add(0)
  const rank = (numbers: Set<number>) => {
    const order = Array.from(numbers).toSorted((a, b) => a - b)
    return (number: number) => String.fromCharCode(48 + order.indexOf(number))
  }
  const tokenRank = rank(tokens)
  const ticketRank = rank(tickets)

  const grants = server.grants.map(({ expiry, id, mode, token }) =>
    `${id}${tokenRank(token)}${ahead(expiry)}${mode[0]}`
  )
  let text = state.hasPassed ? "!" : ""
  text += grants.toSorted().join("+")
  for (const { id, ticket } of server.queue) text += `,${id}${ticketRank(ticket)}`
  for (const { aliveUntil, stamp } of server.clients) text += `;${ahead(aliveUntil)}${ago(stamp)}`
  waiters.forEach((waiter, id) => {
    const { firstTicket, inRoom, isQueued, phase, sentAt, signal, ticket, token, validUntil } = waiter
    const isKnown = server.queue.some((it) => it.id === id)
    text += `|${phase.slice(0, 2)}`
    if (pending(waiter)) {
      text += `${ago(sentAt)}${inRoom ? 1 : 0}${isQueued ? 1 : 0}${ticketRank(ticket)}${tokenRank(token)}${
        ahead(validUntil)
      }`
      if (signal !== undefined) {
        text += signal === "LookAgain" ? "L" : `${tokenRank(signal.token)}${ago(signal.sentAt)}${signal.ttl}`
      }
    }
    text += `.${pending(waiter) || isKnown ? ticketRank(firstTicket) : firstTicket === 0 ? 0 : 1}`
  })
  for (const { lastBeat, state } of clients) text += `|${state[0]}${lastBeat === now ? 1 : 0}`
  const messages = network.map((message) => {
    if (message._tag === "push") {
      return `p${message.id}${tokenRank(message.token)}${ago(message.stamp)}${message.isLate ? 1 : 0}`
    }
    const content = message._tag === "command" ? message.command : message.reply
    let it: string = content._tag
    if ("id" in content) it += content.id
    if ("client" in content) it += content.client
    if ("sentAt" in content) it += `@${ago(content.sentAt)}`
    // The one that is waited for, or an older one.
    if ("sentAt" in content && "id" in content) it += waiters[content.id]!.sentAt === content.sentAt
    if ("token" in content) it += `t${tokenRank(content.token)}`
    if ("place" in content) it += `p${ticketRank(content.place)}`
    if ("ticket" in content) it += `q${ticketRank(content.ticket)}`
    if ("done" in content) it += content.done
    if ("ids" in content) it += content.ids.join("")
    if ("offers" in content) {
      it += content.offers.map(({ id, left, token }) => `${id}.${tokenRank(token)}.${left}`).join() +
        content.unknown.join("")
    }
    return it
  })
  text += `|${messages.toSorted().join(" ")}|${orphans}`
  return `${text}|${state.late}${state.twice}${state.interrupts}${state.pauses}${state.deaths}`
}
