import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"
import type { Cluster, ClusterNode, ClusterOptions, Server, SlotMigration } from "../RedisServer.ts"
import { freePort, host, isPaused, make as makeServer } from "./redisServer.ts"
import type { RedisServerError } from "./redisServerError.ts"
import { askAll, until } from "./redisTopology.ts"

const slotCount = 16384

/** @internal */
export const make = Effect.fnUntraced(function*(
  options: ClusterOptions = {}
): Effect.fn.Return<Cluster, RedisServerError, Scope.Scope> {
  const { masters = 3, replicas = 1 } = options
  const nodes = yield* Effect.all(
    Array.from({ length: masters * (1 + replicas) }, () => startNode(options)),
    { concurrency: "unbounded" }
  )
  yield* join(nodes, masters)

  const views = Effect.map(
    askAll(nodes, "CLUSTER", "NODES"),
    (answers) => answers.map(({ reply, server }) => ({ node: server, ...parse(String(reply)) }))
  )

  const replicasOf: Cluster["replicasOf"] = ({ id }) =>
    Effect.map(views, (views) => views.filter(({ self }) => self.master === id).map(({ node }) => node))

  const masterOf: Cluster["masterOf"] = (key) =>
    Effect.flatMap(slotOf(key), (slot) =>
      until(
        `a master for slot ${slot}`,
        Effect.flatMap(views, (views) => {
          const [owner] = views
            .filter(({ self }) => self.slots.some(([first, last]) => first <= slot && slot <= last))
            .toSorted((a, b) => b.self.epoch - a.self.epoch)
          return owner === undefined ? Effect.fail("no node claims it") : Effect.succeed(owner.node)
        })
      ))

  const slotOf: Cluster["slotOf"] = (key) =>
    until(
      `the slot of ${key}`,
      Effect.flatMap(askAll(nodes, "CLUSTER", "KEYSLOT", key), ([answer]) =>
        answer === undefined ? Effect.fail("no node answers") : Effect.succeed(Number(answer.reply)))
    )

  const settled = until("the cluster has settled", checkSettled(nodes))

  return {
    nodes,
    addresses: nodes.map(({ host, port }) => ({ host, port })),
    slotOf,
    masterOf,
    replicasOf,
    settled,
    failover: Effect.fnUntraced(function*(master, mode) {
      const replica = yield* until(
        `a replica of ${master.port}`,
        Effect.flatMap(
          replicasOf(master),
          ([replica]) => replica === undefined ? Effect.fail("there is none") : Effect.succeed(replica)
        )
      )
      // It may be refused, or come to nothing, for as long as the replica is not in touch with its master.
      yield* until(
        `${replica.port} is a master`,
        Effect.gen(function*() {
          if ((yield* replica.role) === "master") return
          yield* replica.command("CLUSTER", "FAILOVER", ...mode === undefined ? [] : [mode])
          yield* Effect.repeat(replica.role, { until: (role) => role === "master" }).pipe(
            Effect.timeoutOrElse({ duration: "6 seconds", orElse: () => Effect.fail("still a replica") })
          )
        })
      )
      yield* settled
      return replica
    }),
    migrateSlot: (key, to) =>
      Effect.gen(function*() {
        const slot = yield* slotOf(key)
        const from = yield* masterOf(key)
        return migration(nodes, slot, from, to, settled)
      })
  }
})

const startNode = Effect.fnUntraced(function*(options: ClusterOptions) {
  const nodeTimeout = Duration.toMillis(Duration.fromInputUnsafe(options.nodeTimeout ?? "1 second"))
  const server: Server = yield* makeServer({
    binary: options.binary,
    args: options.args,
    port: nodePort,
    config: [
      "cluster-enabled yes",
      "cluster-config-file nodes.conf",
      `cluster-node-timeout ${nodeTimeout}`,
      "cluster-replica-validity-factor 0",
      "repl-diskless-sync yes",
      "repl-diskless-sync-delay 0",
      "repl-ping-replica-period 1",
      ...options.config ?? []
    ]
  })
  const id = String(yield* server.command("CLUSTER", "MYID"))
  const self = Effect.map(server.command("CLUSTER", "NODES"), (text) => parse(String(text)).self)
  const node: ClusterNode = {
    ...server,
    id,
    role: Effect.map(self, ({ flags }) => flags.has("master") ? "master" : "replica"),
    slots: Effect.map(self, ({ slots }) => slots)
  }
  return node
})

// Nodes talk to each other on a second port, which before version 7 cannot be chosen.
const busOffset = 10_000

const nodePort: Effect.Effect<number> = Effect.flatMap(freePort, (port) =>
  Effect.callback<boolean>((resume) => {
    if (port + busOffset > 65_535) return resume(Effect.succeed(false))
    const probe = Net.createServer()
    probe.on("error", () => resume(Effect.succeed(false)))
    probe.listen(port + busOffset, host, () => probe.close(() => resume(Effect.succeed(true))))
  }).pipe(Effect.flatMap((free) => free ? Effect.succeed(port) : nodePort)))

const join = Effect.fnUntraced(function*(nodes: ReadonlyArray<ClusterNode>, masters: number) {
  yield* Effect.forEach(nodes, (node, i) =>
    Effect.gen(function*() {
      yield* node.command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
      if (i >= masters) return
      const first = Math.round((slotCount * i) / masters)
      const last = Math.round((slotCount * (i + 1)) / masters) - 1
      yield* node.command("CLUSTER", "ADDSLOTS", ...Array.from({ length: last - first + 1 }, (_, j) => first + j))
    }), { concurrency: "unbounded" })
  // Everybody is introduced to everybody: gossip would take seconds.
  yield* Effect.forEach(
    nodes,
    (node, i) => Effect.forEach(nodes.slice(i + 1), (other) => node.command("CLUSTER", "MEET", other.host, other.port)),
    {
      concurrency: "unbounded"
    }
  )
  yield* Effect.forEach(nodes.slice(masters), (replica, i) => {
    const master = nodes[i % masters]!
    return until(`${replica.port} knows ${master.port}`, replica.command("CLUSTER", "REPLICATE", master.id))
  }, { concurrency: "unbounded" })
  // Until its master has sent something, a replica is not shown to clients.
  yield* Effect.forEach(nodes.slice(0, masters), (master) => until("a first write", master.command("FLUSHALL")), {
    concurrency: "unbounded"
  })
  yield* until("the cluster has settled", checkSettled(nodes))
})

const checkSettled = Effect.fnUntraced(function*(
  nodes: ReadonlyArray<ClusterNode>
): Effect.fn.Return<void, string> {
  const [views, infos, slots, replications] = yield* Effect.all([
    askAll(nodes, "CLUSTER", "NODES"),
    askAll(nodes, "CLUSTER", "INFO"),
    askAll(nodes, "CLUSTER", "SLOTS"),
    askAll(nodes, "INFO", "replication")
  ], { concurrency: "unbounded" })
  const known = views.map(({ reply, server }) => ({ port: server.port, ...parse(String(reply)) }))
  const alive = new Set(known.map(({ self }) => self.id))

  const [first] = known
  if (first === undefined) return yield* Effect.fail("no node answers")
  const owners = ownersOf(first.nodes)
  for (const { nodes, port, self } of known) {
    if (ownersOf(nodes) !== owners) return yield* Effect.fail(`${port} and ${first.port} disagree on who serves what`)
    if (self.flags.has("master")) continue
    if (!alive.has(self.master)) return yield* Effect.fail(`${port} has a master that does not answer`)
  }
  for (const { flags, id, slots } of first.nodes) {
    if (slots.length > 0 && (!alive.has(id) || /fail/.test([...flags].join()))) {
      return yield* Effect.fail(`a master does not answer`)
    }
  }
  for (const { reply, server } of infos) {
    if (!String(reply).includes("cluster_state:ok")) return yield* Effect.fail(`${server.port} is not ok`)
  }
  for (const { reply, server } of replications) {
    if (/role:slave/.test(String(reply)) && !/master_link_status:up/.test(String(reply))) {
      return yield* Effect.fail(`${server.port} is not attached`)
    }
  }
  const replicas = known.filter(({ self }) => self.flags.has("slave")).map(({ port }) => port)
  for (const { reply, server } of slots) {
    const shown = new Set((reply as SlotsReply).flatMap(([, , , ...replicas]) => replicas.map(([, port]) => port)))
    if (replicas.some((port) => !shown.has(port))) {
      return yield* Effect.fail(`${server.port} does not show all replicas`)
    }
  }
})

type SlotsReply = ReadonlyArray<
  readonly [first: number, last: number, ...nodes: ReadonlyArray<readonly [host: string, port: number, id: string]>]
>

const ownersOf = (nodes: ReadonlyArray<KnownNode>): string =>
  nodes.filter(({ slots }) => slots.length > 0).map(({ id, slots }) => `${id} ${slots.join(" ")}`).toSorted().join()

const migration = (
  nodes: ReadonlyArray<ClusterNode>,
  slot: number,
  from: ClusterNode,
  to: ClusterNode,
  settled: Cluster["settled"]
): SlotMigration => ({
  slot,
  from,
  to,
  begin: Effect.gen(function*() {
    yield* to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", from.id)
    yield* from.command("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)
  }),
  moveKeys: Effect.fnUntraced(function*(chosen) {
    const present = (yield* from.command("CLUSTER", "GETKEYSINSLOT", slot, 1_000_000)) as ReadonlyArray<string>
    const keys = chosen === undefined ? present : present.filter((key) => chosen.includes(key))
    if (keys.length > 0) yield* from.command("MIGRATE", to.host, to.port, "", 0, 5000, "KEYS", ...keys)
    return keys
  }),
  finish: Effect.gen(function*() {
    // The new owner first: for a moment both would send clients to each other otherwise.
    const masters = yield* Effect.filter(nodes, (node) => Effect.orElseSucceed(isMaster(node), () => false))
    for (const node of new Set([to, from, ...masters])) yield* node.command("CLUSTER", "SETSLOT", slot, "NODE", to.id)
    yield* settled
  })
})

const isMaster = (node: ClusterNode): Effect.Effect<boolean, RedisServerError> =>
  Effect.suspend(() => isPaused(node) ? Effect.succeed(false) : Effect.map(node.role, (role) => role === "master"))

interface KnownNode {
  readonly id: string
  readonly flags: ReadonlySet<string>
  readonly master: string
  readonly epoch: number
  readonly slots: ReadonlyArray<readonly [first: number, last: number]>
}

// <id> <ip:port@bus> <flags> <master or -> <ping sent> <pong received> <epoch> <link> <slots and migrations>...
const parse = (text: string): { readonly nodes: ReadonlyArray<KnownNode>; readonly self: KnownNode } => {
  const nodes = text.trim().split("\n").map((line): KnownNode => {
    const [id, , flags, master, , , epoch, , ...slots] = line.split(" ")
    return {
      id: id!,
      flags: new Set(flags!.split(",")),
      master: master!,
      epoch: Number(epoch),
      slots: slots.filter((range) => !range.startsWith("[")).map((range) => {
        const [first, last = first] = range.split("-")
        return [Number(first), Number(last)] as const
      })
    }
  })
  return { nodes, self: nodes.find(({ flags }) => flags.has("myself"))! }
}
