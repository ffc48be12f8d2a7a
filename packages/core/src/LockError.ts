/**
 * The ways a lock operation can fail. Each error names the limit that was hit, its value, and what the store knew, so
 * that "waited too long for another holder", "the store did not answer" and "the lease was lost" never look alike.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * Who holds a key, as the store knew it when it answered.
 *
 * **Details**
 *
 * `heldFor` and `timeLeft` are milliseconds on the store's clock, with fractions on the memory store; `metadata` is what the holder said of itself with the
 * `holder` option.
 *
 * @category models
 * @since 0.1.0
 */
export const HolderInfo = Schema.Struct({
  holderId: Schema.String,
  token: Schema.Number,
  permits: Schema.Number,
  heldFor: Schema.Number,
  timeLeft: Schema.Number,
  metadata: Schema.Record(Schema.String, Schema.String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type HolderInfo = typeof HolderInfo.Type

/**
 * The wait for a key ended before the key was granted: another holder kept it for longer than `waitTimeout`.
 *
 * **Details**
 *
 * `holders` are those in the way at that moment, `position` the place in the queue (0 is next, -1 is not queued) and
 * `queueLength` how many waited, this caller included. The queue entry is already gone when you see this error.
 *
 * @category errors
 * @since 0.1.0
 */
export class LockTimeout extends Schema.TaggedError<LockTimeout>()("LockTimeout", {
  key: Schema.String,
  permits: Schema.Number,
  limit: Schema.Number,
  waitTimeout: Schema.Number,
  holders: Schema.Array(HolderInfo),
  position: Schema.Number,
  queueLength: Schema.Number
}) {
  override get message(): string {
    const queue = this.position >= 0 ? `, position ${this.position} of ${this.queueLength} in the queue` : ""
    return `${describeAsk(this)} not granted within waitTimeout of ${this.waitTimeout} ms: ${
      describeHolders(this.holders)
    }${queue}`
  }
}

/**
 * So many wait for the key already that `maxWaiters` forbids to queue behind them. Nothing is left in the queue.
 *
 * @category errors
 * @since 0.1.0
 */
export class LockQueueFull extends Schema.TaggedError<LockQueueFull>()("LockQueueFull", {
  key: Schema.String,
  permits: Schema.Number,
  limit: Schema.Number,
  maxWaiters: Schema.Number,
  holders: Schema.Array(HolderInfo),
  queueLength: Schema.Number
}) {
  override get message(): string {
    return `${describeAsk(this)} not waited for: ${this.queueLength} wait already, maxWaiters is ${this.maxWaiters}: ${
      describeHolders(this.holders)
    }`
  }
}

/**
 * The key does not have as many permits as this caller says or asks for: somebody uses it with another limit, or its limit
 * was changed.
 *
 * **Details**
 *
 * `permits` with a limit of `limit` is what was asked for, `actual` how many permits the key has: after `setLimit` another
 * number than the limit its callers say.
 *
 * @category errors
 * @since 0.1.0
 */
export class PermitsRefused extends Schema.TaggedError<PermitsRefused>()("PermitsRefused", {
  key: Schema.String,
  permits: Schema.Number,
  limit: Schema.Number,
  actual: Schema.Number
}) {
  override get message(): string {
    const there = this.actual === 1 ? "1 permit" : `${this.actual} permits`
    const fix = this.permits > this.actual
      ? `Ask for at most ${this.actual}, or raise the limit with setLimit; if others say another limit, say theirs`
      : "Say the limit that all other callers of the key say; setLimit changes how many there are, not what they say"
    return `"${this.key}" has ${there} now: ${this.permits} with a limit of ${this.limit} cannot be had. ${fix}`
  }
}

/**
 * The store could not do what was asked.
 *
 * **Details**
 *
 * - `Timeout`: no answer within `limit` (milliseconds), the store's own `commandTimeout` unless `limitName` names another.
 *   The command may have run.
 * - `Unavailable`: the store could not be reached, or the connection broke. The command may have run.
 * - `Refused`: the store answered with an error (permission, read-only, out of memory, wrong type).
 *
 * @category errors
 * @since 0.1.0
 */
export class LockStoreError extends Schema.TaggedError<LockStoreError>()("LockStoreError", {
  store: Schema.String,
  operation: Schema.String,
  reason: Schema.Literals(["Timeout", "Unavailable", "Refused"]),
  limitName: Schema.optional(Schema.String),
  limit: Schema.optional(Schema.Number),
  detail: Schema.optional(Schema.String),
  cause: Schema.optional(Schema.Defect())
}) {
  override get message(): string {
    const detail = this.detail === undefined ? "" : `: ${this.detail}`
    switch (this.reason) {
      case "Timeout":
        return `The ${this.store} store did not answer "${this.operation}" within ${
          this.limitName ?? "commandTimeout"
        } of ${this.limit} ms${detail}`
      case "Unavailable":
        return `The ${this.store} store is unreachable for "${this.operation}"${detail}`
      case "Refused":
        return `The ${this.store} store refused "${this.operation}"${detail}`
    }
  }
}

/**
 * Why a lease was lost.
 *
 * **Details**
 *
 * - `Expired`: the local deadline passed without a confirmed renewal.
 * - `NotHeld`: the store says this lease is not there: deleted, expired or taken over.
 * - `MaxHold`: held for longer than `maxHold`.
 * - `Released`: used after its scope closed, or a nested body outlived the region it was nested in.
 * - `Closed`: the `Lock` layer is closing.
 * - `TakenOver`: somebody took the key with `Lock.takeover`.
 * - `HandedOff`: used after `lease.handOff` gave it away.
 * - `Stalled`: no `lease.heartbeat` for longer than `progressTimeout`.
 *
 * @category models
 * @since 0.1.0
 */
export const LossReason = Schema.Literals([
  "Expired",
  "NotHeld",
  "MaxHold",
  "Released",
  "Closed",
  "TakenOver",
  "HandedOff",
  "Stalled"
])

/**
 * @category models
 * @since 0.1.0
 */
export type LossReason = typeof LossReason.Type

/**
 * The lease is gone, so the work it guarded was interrupted.
 *
 * **Gotchas**
 *
 * The store may have let somebody else in at any time after the deadline. What the interrupted work did before is not
 * undone; only a resource that checks `token` refuses a late write.
 *
 * @category errors
 * @since 0.1.0
 */
export class LockLost extends Schema.TaggedError<LockLost>()("LockLost", {
  key: Schema.String,
  holderId: Schema.String,
  token: Schema.Number,
  reason: LossReason,
  limit: Schema.optional(Schema.Number),
  cause: Schema.optional(Schema.Defect())
}) {
  override get message(): string {
    return `Lease on "${this.key}" (token ${this.token}) lost: ${describeLoss(this)}`
  }
}

/**
 * Waiting could never end.
 *
 * **Details**
 *
 * - `Self`: this fiber or scope has the key already, through `Lock.acquire` in a scope that is still open, or has so many of
 *   its permits that the rest is not enough: it would wait for itself. `permits` were asked for by who has `held` of `limit`;
 *   `token` is that of a lease it has, `detail` what would help.
 * - `Order`: `LockOrder` has seen these keys nested the other way round, so two fibers could wait for each other, and
 *   `detail` names both places; or two fibers inside locks of both keys nest them in opposite orders, and do. Take them in one
 *   order, or together with `Lock.withLocks`.
 *
 * @category errors
 * @since 0.1.0
 */
export class LockDeadlock extends Schema.TaggedError<LockDeadlock>()("LockDeadlock", {
  key: Schema.String,
  token: Schema.Number,
  reason: Schema.Literals(["Self", "Order"]),
  permits: Schema.optional(Schema.Number),
  held: Schema.optional(Schema.Number),
  limit: Schema.optional(Schema.Number),
  detail: Schema.optional(Schema.String)
}) {
  override get message(): string {
    if (this.reason === "Order") return `Lock "${this.key}" asked for in the wrong order: ${this.detail}`
    const token = this.token > 0 ? ` (token ${this.token})` : ""
    const what = this.limit === undefined || this.limit === 1
      ? `Lock "${this.key}" is already ${this.token > 0 ? "held" : "asked for"}${token} by this fiber or scope`
      : `${this.permits} of the ${this.limit} permits of "${this.key}" asked for by a fiber or scope that ` +
        `has ${this.held} already${token}`
    return `${what}; waiting would never end${this.detail === undefined ? "" : `. ${this.detail}`}`
  }
}

/**
 * The `Lock` layer is closing: nothing is acquired any more, and waiters are sent home.
 *
 * @category errors
 * @since 0.1.0
 */
export class LockClosed extends Schema.TaggedError<LockClosed>()("LockClosed", {
  key: Schema.String
}) {
  override get message(): string {
    return `Lock "${this.key}" not acquired: the Lock layer is closing`
  }
}

/**
 * A key or an option is not usable. Nothing was sent to the store.
 *
 * @category errors
 * @since 0.1.0
 */
export class LockInvalid extends Schema.TaggedError<LockInvalid>()("LockInvalid", {
  input: Schema.String,
  value: Schema.String,
  fix: Schema.String
}) {
  override get message(): string {
    return `Invalid ${this.input} ${this.value}: ${this.fix}`
  }
}

/**
 * A ticket cannot be adopted.
 *
 * **Details**
 *
 * - `Adopted`: somebody has adopted it before.
 * - `TakenOver`: the key was taken over while the ticket was on its way.
 * - `Expired`: the lease ran out before, or the store has never heard of it. Ten minutes after the fact the store has
 *   forgotten the other two reasons and answers with this one.
 *
 * @category errors
 * @since 0.1.0
 */
export class TicketRefused extends Schema.TaggedError<TicketRefused>()("TicketRefused", {
  key: Schema.String,
  ticketId: Schema.String,
  token: Schema.Number,
  reason: Schema.Literals(["Adopted", "TakenOver", "Expired"])
}) {
  override get message(): string {
    const why = {
      Adopted: "it was adopted before",
      TakenOver: "the key was taken over meanwhile",
      Expired: "its time left was over, or it never was"
    }
    return `Ticket for "${this.key}" (token ${this.token}) refused: ${why[this.reason]}`
  }
}

/**
 * Another reader of the same key waits to become the writer already: each would wait for the other to go.
 *
 * **Details**
 *
 * `token` is that of the read lease that could not be upgraded; `holders` are all that read. The other one gets in as soon
 * as this read lease is given up: let the whole region fail, and start it again, reading anew.
 *
 * @category errors
 * @since 0.1.0
 */
export class LockUpgradeConflict extends Schema.TaggedError<LockUpgradeConflict>()("LockUpgradeConflict", {
  key: Schema.String,
  token: Schema.Number,
  holders: Schema.Array(HolderInfo)
}) {
  override get message(): string {
    return `Read lease on "${this.key}" (token ${this.token}) cannot be upgraded: another one of ` +
      `${this.holders.length} readers asked first, and waits for this one to end. Give it up, and start again`
  }
}

/**
 * Everything that acquiring and holding a lock can fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type LockError =
  | LockTimeout
  | LockQueueFull
  | LockStoreError
  | LockLost
  | LockDeadlock
  | LockClosed
  | LockInvalid
  | PermitsRefused

const describeAsk = ({ key, limit, permits }: AskInfo): string =>
  permits === 1 ? `Lock "${key}"` : permits === limit ? `All permits of "${key}"` : `${permits} permits of "${key}"`

interface AskInfo {
  readonly key: string
  readonly permits: number
  readonly limit: number
}

const describeHolders = ([holder]: ReadonlyArray<HolderInfo>): string =>
  holder === undefined
    ? "no holder known"
    : `held by ${describeHolder(holder)} for ${Math.round(holder.heldFor)} ms, ${
      Math.round(holder.timeLeft)
    } ms of its lease left`

const describeHolder = (holder: HolderInfo): string => {
  const metadata = Object.entries(holder.metadata).map(([name, value]) => `${name} ${value}`).join(", ")
  return `${holder.holderId}${metadata === "" ? "" : ` (${metadata})`}, token ${holder.token}`
}

const describeLoss = (error: LockLost): string => {
  switch (error.reason) {
    case "Expired": {
      const cause = error.cause instanceof Error ? `; last answer: ${error.cause.message}` : ""
      return `not renewed within its ttl of ${error.limit} ms${cause}`
    }
    case "NotHeld":
      return "the store does not know it any more (deleted, expired or taken over)"
    case "MaxHold":
      return `held for maxHold of ${error.limit} ms`
    case "Released":
      return "used after its scope or region ended"
    case "Closed":
      return "the Lock layer is closing"
    case "TakenOver":
      return "somebody took it over"
    case "HandedOff":
      return "used after it was handed off"
    case "Stalled":
      return `no heartbeat for progressTimeout of ${error.limit} ms`
  }
}
