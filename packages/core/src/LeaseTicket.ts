/**
 * The right to take over a lease in another fiber, process or machine, as plain data.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"

/**
 * What `lease.handOff` gives and `Lock.adopt` takes. Send it as JSON.
 *
 * **Details**
 *
 * It carries no secret beyond the right to adopt once: `key`, the id under which the store keeps the lease, the token of
 * the lease that was handed off, and until when it can be adopted (milliseconds of the sender's wall clock, for people and
 * queues to read; the store's own clock decides).
 *
 * **Example** (Over the wire)
 *
 * ```ts import.meta.vitest
 * import { Schema } from "effect"
 * import { LeaseTicket } from "@effect-lock/core"
 *
 * const json = Schema.fromJsonString(LeaseTicket.LeaseTicket)
 * const ticket = { key: "report", ticketId: "5f0c-1-t", token: 7, adoptableUntil: 1_800_000_000_000 }
 * Schema.decodeSync(json)(Schema.encodeSync(json)(ticket)).token // => 7
 * ```
 *
 * @category models
 * @since 0.1.0
 */
export const LeaseTicket = Schema.Struct({
  key: Schema.String,
  ticketId: Schema.String,
  token: Schema.Number,
  adoptableUntil: Schema.Number
})

/**
 * @category models
 * @since 0.1.0
 */
export type LeaseTicket = typeof LeaseTicket.Type
