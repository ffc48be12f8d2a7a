import type { LockEvent } from "../LockEvent.ts"
import type { Holding } from "./holding.ts"

/** @internal */
export type Listener = (event: LockEvent) => void

/**
 * Tells those who listen; costs nothing while nobody does.
 *
 * @internal
 */
export const emit = (holding: Holding, tag: LockEvent["_tag"]): void => {
  const { listeners } = holding.client
  if (listeners.size === 0) return
  const event = describe(holding, tag)
  for (const listener of listeners) listener(event)
}

const describe = (holding: Holding, tag: LockEvent["_tag"]): LockEvent => {
  const { blockedBy, clock, holderId, key, permits, token } = holding
  const about = { key, holderId, permits, at: clock.currentTimeMillisUnsafe() }
  switch (tag) {
    case "Queued":
      return { _tag: tag, ...about, blockedBy }
    case "Granted":
      return { _tag: tag, ...about, token, waitedFor: Math.round(holding.waitedFor()) }
    case "Lost":
      return { _tag: tag, ...about, token, heldFor: Math.round(holding.heldFor()), reason: holding.lostFor! }
    case "RenewalFailed":
      return { _tag: tag, ...about, token, timeLeft: Math.round(holding.timeLeft()), cause: holding.unconfirmed }
    case "Released":
    case "HandedOff":
      return { _tag: tag, ...about, token, heldFor: Math.round(holding.heldFor()) }
    case "NotGranted":
      return { _tag: tag, ...about, waitedFor: Math.round(holding.waitedFor()), outcome: holding.outcome }
  }
}
