/**
 * A connection to a server that a test sits on: it sees every chunk, and changes it or cuts the connection.
 */
import { Effect, type Scope } from "effect"
import * as Net from "node:net"

export interface Tap {
  readonly host: string
  readonly port: number
  readonly url: string
  /** Connections that were ever made. */
  readonly accepted: () => number
}

/** What becomes of a chunk of the connection that was made as the `index`th; `undefined` cuts the connection. */
export type Filter = (chunk: string, index: number) => string | undefined

export const make = (
  target: { readonly host: string; readonly port: number },
  filters: { readonly request?: Filter; readonly reply?: Filter } = {}
): Effect.Effect<Tap, never, Scope.Scope> =>
  Effect.gen(function*() {
    const sockets = new Set<Net.Socket>()
    let accepted = 0
    const listener = yield* Effect.acquireRelease(
      Effect.callback<Net.Server>((resume) => {
        const listener = Net.createServer((client) => {
          const index = accepted++
          const server = Net.connect(target)
          const cut = () => {
            client.resetAndDestroy()
            server.destroy()
          }
          const pass = (from: Net.Socket, to: Net.Socket, filter: Filter = (chunk) => chunk) => {
            sockets.add(from)
            from.setEncoding("latin1")
            from.on("data", (chunk: string) => {
              const passed = filter(chunk, index)
              if (passed === undefined) cut()
              else to.write(passed, "latin1")
            })
            from.on("error", () => {})
            from.on("close", () => {
              sockets.delete(from)
              to.destroy()
            })
          }
          pass(client, server, filters.request)
          pass(server, client, filters.reply)
        })
        listener.listen(0, "127.0.0.1", () => resume(Effect.succeed(listener)))
      }),
      (listener) =>
        Effect.callback<void>((resume) => {
          listener.close(() => resume(Effect.void))
          for (const socket of sockets) socket.destroy()
        })
    )
    const { port } = listener.address() as Net.AddressInfo
    return { host: "127.0.0.1", port, url: `redis://127.0.0.1:${port}`, accepted: () => accepted }
  })
