/**
 * A TCP proxy that misbehaves on demand: put it between a client and a server, and the network between them can be slow,
 * silent in one direction or both, cut, or lose replies.
 *
 * Bytes held back are never lost: as in a real network partition, they arrive in order when the proxy heals. What is
 * lost on purpose (`dropReplies`) always ends in a reset of that connection, so no client sees a stream with a hole.
 *
 * **Gotchas**
 *
 * A proxy lives in real time: use `it.live`.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"

/**
 * The half of a connection a fault applies to: from client to server, from server to client, or both.
 *
 * @category models
 * @since 0.1.0
 */
export type Direction = "requests" | "replies" | "both"

/**
 * A proxy and its faults.
 *
 * **Details**
 *
 * Faults apply to open connections and to new ones, add up, and last until `heal`.
 *
 * @category models
 * @since 0.1.0
 */
export interface FaultProxy {
  readonly host: string
  readonly port: number
  readonly url: string
  /**
   * Client connections that are open now.
   */
  readonly connections: Effect.Effect<number>
  /**
   * Holds every chunk back for this long, in each direction.
   */
  readonly latency: (duration: Duration.Input) => Effect.Effect<void>
  /**
   * Keeps and accepts connections, but forwards nothing, not even their end, in this direction (default `"both"`).
   */
  readonly blackhole: (direction?: Direction) => Effect.Effect<void>
  /**
   * Resets every open connection, on both sides. New ones are served.
   */
  readonly reset: Effect.Effect<void>
  /**
   * Swallows the next `count` chunks of reply, then resets the connections that missed one: the server has done what the
   * client does not know of. Several replies, or pushes, can share a chunk.
   */
  readonly dropReplies: (count: number) => Effect.Effect<void>
  /**
   * Resets every open connection, and each new one as soon as it is made.
   */
  readonly refuse: Effect.Effect<void>
  /**
   * Ends all faults and delivers what was held back.
   */
  readonly heal: Effect.Effect<void>
}

/**
 * Listens on a free port of 127.0.0.1 and forwards to the target until the scope closes.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(target: {
  readonly host: string
  readonly port: number
}): Effect.fn.Return<FaultProxy, never, Scope.Scope> {
  const faults: Faults = { latency: 0, held: new Set(), repliesToDrop: 0 }
  const connections = new Set<Connection>()
  let refusing = false

  const resetIf = (predicate: (connection: Connection) => boolean) => {
    for (const connection of connections) {
      if (predicate(connection)) connection.reset()
    }
  }

  const listener = yield* Effect.acquireRelease(
    Effect.callback<Net.Server>((resume) => {
      const listener = Net.createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
        if (refusing) {
          client.on("error", () => {})
          client.resetAndDestroy()
          return
        }
        const connection = connect({
          client,
          target,
          faults,
          onReplyDropped: () => {
            if (faults.repliesToDrop === 0) resetIf(({ missesReply }) => missesReply())
          },
          onClosed: () => connections.delete(connection)
        })
        connections.add(connection)
      })
      listener.on("error", (cause) => resume(Effect.die(cause)))
      listener.listen(0, "127.0.0.1", () => resume(Effect.succeed(listener)))
    }),
    (listener) =>
      Effect.callback<void>((resume) => {
        listener.close(() => resume(Effect.void))
        resetIf(() => true)
      })
  )
  const { port } = listener.address() as Net.AddressInfo

  return {
    host: "127.0.0.1",
    port,
    url: `redis://127.0.0.1:${port}`,
    connections: Effect.sync(() => Array.from(connections).filter(({ isOpen }) => isOpen()).length),
    latency: (duration) =>
      Effect.sync(() => {
        faults.latency = Duration.toMillis(Duration.fromInputUnsafe(duration))
      }),
    blackhole: (direction = "both") =>
      Effect.sync(() => {
        if (direction !== "replies") faults.held.add("requests")
        if (direction !== "requests") faults.held.add("replies")
      }),
    reset: Effect.sync(() => resetIf(() => true)),
    dropReplies: (count) =>
      Effect.sync(() => {
        faults.repliesToDrop = count
      }),
    refuse: Effect.sync(() => {
      refusing = true
      resetIf(() => true)
    }),
    heal: Effect.sync(() => {
      refusing = false
      faults.latency = 0
      faults.repliesToDrop = 0
      faults.held.clear()
      resetIf(({ missesReply }) => missesReply())
      for (const connection of connections) connection.flush()
    })
  }
})

interface Faults {
  latency: number
  repliesToDrop: number
  readonly held: Set<"requests" | "replies">
}

interface Connection {
  readonly flush: () => void
  readonly reset: () => void
  readonly isOpen: () => boolean
  readonly missesReply: () => boolean
}

const connect = (options: {
  readonly client: Net.Socket
  readonly target: { readonly host: string; readonly port: number }
  readonly faults: Faults
  readonly onReplyDropped: () => void
  readonly onClosed: () => void
}): Connection => {
  const { client, faults } = options
  const server = Net.connect({ ...options.target, allowHalfOpen: true, noDelay: true })
  let missesReply = false

  const requests = pipe(client, server, "requests", faults, () => false)
  const replies = pipe(server, client, "replies", faults, () => {
    if (faults.repliesToDrop === 0) return false
    faults.repliesToDrop--
    missesReply = true
    options.onReplyDropped()
    return true
  })

  // The server's side can outlive the client's: behind a blackhole it does not learn that the client is gone.
  const onClose = () => {
    if (client.closed && server.closed) options.onClosed()
  }
  client.on("close", onClose)
  server.on("close", onClose)

  return {
    flush: () => {
      requests()
      replies()
    },
    reset: () => {
      client.resetAndDestroy()
      server.resetAndDestroy()
    },
    isOpen: () => !client.destroyed,
    missesReply: () => missesReply
  }
}

const maxQueued = 64

/**
 * Forwards data, end and reset of one socket to another; returns what forwards all that is due.
 */
const pipe = (
  from: Net.Socket,
  to: Net.Socket,
  direction: "requests" | "replies",
  faults: Faults,
  drop: () => boolean
): () => void => {
  const queue: Array<{ readonly arrived: number; readonly chunk: Buffer | "end" | "reset" }> = []
  let timer: NodeJS.Timeout | undefined

  const flush = () => {
    clearTimeout(timer)
    while (queue[0] !== undefined && !faults.held.has(direction) && !to.destroyed) {
      const wait = queue[0].arrived + faults.latency - performance.now()
      if (wait > 0) {
        timer = setTimeout(flush, wait)
        break
      }
      const { chunk } = queue.shift()!
      if (chunk === "end") to.end()
      else if (chunk === "reset") to.resetAndDestroy()
      else if (!drop()) to.write(chunk)
    }
    // A receiver that is held up slows its sender down, as a full TCP window does.
    if (queue.length < maxQueued) from.resume()
    else from.pause()
  }
  const push = (chunk: Buffer | "end" | "reset") => {
    queue.push({ arrived: performance.now(), chunk })
    flush()
  }

  from.on("data", push)
  from.on("end", () => push("end"))
  from.on("error", () => push("reset"))
  to.on("close", () => clearTimeout(timer))
  return flush
}
