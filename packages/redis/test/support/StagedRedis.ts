/**
 * An ioredis client whose every command, reply and push can be stopped at a chosen point, where something happens to who
 * waits for it. Order is kept as on a connection: what comes after a held command or reply is held behind it.
 */
import { Effect, type Scope } from "effect"
import { Redis } from "ioredis"
import { nameOf } from "./observe.ts"

/**
 * A moment in the life of a command or a push, `attempt#0` being the first attempt.
 *
 * - `before`: asked for, not yet sent. Held until the act has had its effect.
 * - `executed`: the server has done it and the reply is on its way. Held likewise.
 * - a number: that many microtasks after the reply was handed over; -1 is just before, `later` one turn of the event loop
 *   after it.
 */
export interface Point {
  readonly step: string
  readonly moment: "before" | "executed" | "later" | number
}

export interface StagedRedis {
  /** What `RedisLockStore.layerClient` takes. */
  readonly redis: Redis
  /** The steps in the order in which they began, and what a test adds. */
  readonly trace: Array<string>
  readonly count: (name: string) => number
  /** Does something at a point, once. What is held there is held until that is done, too. */
  readonly at: (point: Point, act: () => void | Promise<unknown>) => void
  /** Begins a new count of steps, a new trace, and plans nothing. */
  readonly reset: () => void
  readonly hasActed: () => boolean
  /** Cuts the connection for commands; it is made anew. */
  readonly cut: () => void
}

const turns = async (count: number) => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

export const make = Effect.fnUntraced(function*(target: {
  readonly host: string
  readonly port: number
}): Effect.fn.Return<StagedRedis, never, Scope.Scope> {
  const real = yield* Effect.acquireRelease(
    Effect.promise(async () => {
      const redis = new Redis({
        host: target.host,
        port: target.port,
        lazyConnect: true,
        autoResendUnfulfilledCommands: false,
        maxRetriesPerRequest: 0,
        retryStrategy: () => 5
      })
      redis.on("error", () => {})
      await redis.connect()
      return redis
    }),
    (redis) => Effect.sync(() => redis.disconnect())
  )

  const trace: Array<string> = []
  const counts = new Map<string, number>()
  let planned: { readonly point: Point; readonly act: () => void | Promise<unknown> } | undefined
  let doing: void | Promise<unknown>
  let acted = false

  const begin = (name: string): string => {
    const index = counts.get(name) ?? 0
    counts.set(name, index + 1)
    const step = `${name}#${index}`
    trace.push(step)
    return step
  }

  const act = (step: string, moment: Point["moment"]): boolean => {
    if (acted || planned?.point.step !== step || planned.point.moment !== moment) return false
    acted = true
    doing = planned.act()
    return true
  }

  /** What was acted upon has a few turns of the event loop to react before things go on. */
  const hold = async (step: string, moment: "before" | "executed") => {
    if (!act(step, moment)) return
    await doing
    await turns(5)
  }

  const handOver = (step: string, deliver: () => void) => {
    act(step, -1)
    deliver()
    act(step, 0)
    void (async () => {
      for (let tick = 1; tick <= 6; tick++) {
        await Promise.resolve()
        act(step, tick)
      }
      await turns(1)
      act(step, "later")
    })()
  }

  let sending: Promise<unknown> = Promise.resolve()
  let replying: Promise<unknown> = Promise.resolve()

  const issue = (name: string, send: () => Promise<unknown>): Promise<unknown> => {
    const step = begin(name)
    const sent = sending.then(async () => {
      await hold(step, "before")
      const reply = send()
      reply.catch(() => {})
      return { reply }
    })
    sending = sent
    return new Promise((resolve, reject) => {
      replying = replying.then(async () => {
        const { reply } = await sent
        const settle = await reply.then((value) => () => resolve(value), (error) => () => reject(error))
        await hold(step, "executed")
        return handOver(step, settle)
      })
    })
  }

  const duplicate = (options: object): Redis => {
    const subscriber = real.duplicate(options)
    const on = subscriber.on.bind(subscriber) as (event: string, listener: (...args: Array<string>) => void) => Redis
    let delivering: Promise<unknown> = Promise.resolve()
    return Object.assign(subscriber, {
      on: (event: string, listener: (...args: Array<string>) => void) =>
        on(
          event,
          event !== "message" ? listener : (...args) => {
            const step = begin("push")
            delivering = delivering.then(async () => {
              await hold(step, "before")
              return handOver(step, () => listener(...args))
            })
          }
        )
    })
  }

  const run = (command: "evalsha" | "eval") => (...args: ReadonlyArray<string | number>) =>
    issue(
      nameOf([command, String(args[0])]),
      () =>
        (real as unknown as Record<string, (...args: ReadonlyArray<string | number>) => Promise<unknown>>)[command]!(
          ...args
        )
    )

  // Everything else is that of the real one.
  const redis: Redis = Object.assign(Object.create(real), { evalsha: run("evalsha"), eval: run("eval"), duplicate })

  return {
    redis,
    trace,
    count: (name) => counts.get(name) ?? 0,
    at: (point, act) => {
      planned = { point, act }
    },
    reset: () => {
      trace.length = 0
      counts.clear()
      planned = undefined
      acted = false
    },
    hasActed: () => acted,
    cut: () => {
      ;(real as unknown as { readonly stream: { readonly destroy: () => void } }).stream.destroy()
    }
  }
})
