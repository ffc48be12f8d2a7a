/**
 * @since 0.1.0
 */
export * as DistributedCron from "./DistributedCron.ts"

/**
 * @since 0.1.0
 */
export * as DistributedSemaphore from "./DistributedSemaphore.ts"

/**
 * @since 0.1.0
 */
export * as Fencing from "./Fencing.ts"

/**
 * @since 0.1.0
 */
export * as Guard from "./Guard.ts"

/**
 * @since 0.1.0
 */
export * as LeaderElection from "./LeaderElection.ts"

/**
 * @since 0.1.0
 */
export * as Lease from "./Lease.ts"

/**
 * @since 0.1.0
 */
export * as LeaseTicket from "./LeaseTicket.ts"

/**
 * @since 0.1.0
 */
export * as Lock from "./Lock.ts"

/**
 * @since 0.1.0
 */
export * as LockError from "./LockError.ts"

/**
 * @since 0.1.0
 */
export * as LockEvent from "./LockEvent.ts"

/**
 * @since 0.1.0
 */
export * as LockMetrics from "./LockMetrics.ts"

/**
 * @since 0.1.0
 */
export * as LockOptions from "./LockOptions.ts"

/**
 * @since 0.1.0
 */
export * as LockOrder from "./LockOrder.ts"

/**
 * @since 0.1.0
 */
export * as LockStore from "./LockStore.ts"

/**
 * @since 0.1.0
 */
export * as Permits from "./Permits.ts"

/**
 * @since 0.1.0
 */
export * as ReadWriteLock from "./ReadWriteLock.ts"
