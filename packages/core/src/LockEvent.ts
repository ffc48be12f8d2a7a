/**
 * What happens to the locks of a `Lock` layer, told by `Lock.events`.
 *
 * @since 0.1.0
 */
import type { LossReason } from "./LockError.ts"

/**
 * What every event says. `at` is milliseconds of this machine's wall clock.
 *
 * @category models
 * @since 0.1.0
 */
export interface About {
  readonly key: string
  readonly holderId: string
  readonly permits: number
  readonly at: number
}

/**
 * An event of this process. Durations are milliseconds.
 *
 * **Details**
 *
 * - `Queued`: has to wait; `blockedBy` is a holder in the way, as far as known.
 * - `Granted`, `NotGranted`: how asking ended. `outcome` is the tag of the error, `interrupted` or `died`.
 * - `RenewalFailed`: the outcome of a renewal is unknown, and it is tried again.
 * - `Lost`: the lease is gone, and its work is interrupted.
 * - `Released`, `HandedOff`: how a lease that was not lost ended. A release is told when it is sent.
 *
 * @category models
 * @since 0.1.0
 */
export type LockEvent =
  | About & { readonly _tag: "Queued"; readonly blockedBy: string | undefined }
  | About & { readonly _tag: "Granted"; readonly token: number; readonly waitedFor: number }
  | About & { readonly _tag: "NotGranted"; readonly waitedFor: number; readonly outcome: string }
  | About & {
    readonly _tag: "RenewalFailed"
    readonly token: number
    readonly timeLeft: number
    readonly cause: unknown
  }
  | About & { readonly _tag: "Lost"; readonly token: number; readonly heldFor: number; readonly reason: LossReason }
  | About & { readonly _tag: "Released" | "HandedOff"; readonly token: number; readonly heldFor: number }
