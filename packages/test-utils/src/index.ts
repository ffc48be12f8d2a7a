/**
 * What it takes to test stores and applications against real servers, real faults and recorded histories.
 *
 * @since 0.1.0
 */
export * as FaultProxy from "./FaultProxy.ts"
export * as LockHistory from "./LockHistory.ts"
export * as LockStoreSuite from "./LockStoreSuite.ts"
export * as PrimitiveSuite from "./PrimitiveSuite.ts"
export * as RedisServer from "./RedisServer.ts"
