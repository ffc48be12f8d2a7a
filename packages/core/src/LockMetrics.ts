/**
 * The metrics every lock reports, without being asked. No series carries a key.
 *
 * @since 0.1.0
 */
import * as Metric from "effect/Metric"

const milliseconds = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000]

/**
 * Milliseconds from asking for a lock to its grant.
 *
 * @category metrics
 * @since 0.1.0
 */
export const wait = Metric.histogram("effect_lock_wait_milliseconds", {
  description: "Time from asking for a lock to its grant",
  boundaries: milliseconds
})

/**
 * Milliseconds from a grant to the end of the lock.
 *
 * @category metrics
 * @since 0.1.0
 */
export const hold = Metric.histogram("effect_lock_hold_milliseconds", {
  description: "Time from a grant to the end of the lock",
  boundaries: milliseconds
})

/**
 * How acquisitions ended, by `outcome`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const acquisitions = Metric.counter("effect_lock_acquisitions_total", {
  description: "Acquisitions by outcome",
  incremental: true
})

/**
 * Acquisitions that had to queue for another holder.
 *
 * @category metrics
 * @since 0.1.0
 */
export const contended = Metric.counter("effect_lock_contended_total", {
  description: "Acquisitions that had to queue",
  incremental: true
})

/**
 * Renewals, by `outcome`: `done`, `not_held`, `failed` (unknown, tried again).
 *
 * @category metrics
 * @since 0.1.0
 */
export const renewals = Metric.counter("effect_lock_renewals_total", {
  description: "Renewals by outcome",
  incremental: true
})

/**
 * Lost leases, by `reason`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const lost = Metric.counter("effect_lock_lost_total", {
  description: "Lost leases by reason",
  incremental: true
})

/**
 * Releases that the store did not confirm in time.
 *
 * @category metrics
 * @since 0.1.0
 */
export const releaseFailures = Metric.counter("effect_lock_release_failures_total", {
  description: "Releases that the store did not confirm within releaseTimeout",
  incremental: true
})

/**
 * Leases held by this process now.
 *
 * @category metrics
 * @since 0.1.0
 */
export const held = Metric.gauge("effect_lock_held", { description: "Leases held by this process" })

/**
 * Fibers of this process queued for a key now.
 *
 * @category metrics
 * @since 0.1.0
 */
export const waiting = Metric.gauge("effect_lock_waiting", { description: "Fibers of this process queued for a key" })
