/**
 * @since 0.1.0
 */
export * as FencedRedis from "./FencedRedis.ts"

/**
 * @since 0.1.0
 */
export * as QuorumLockStore from "./QuorumLockStore.ts"

/**
 * @since 0.1.0
 */
export * as RedisClient from "./RedisClient.ts"

/**
 * @since 0.1.0
 */
export * as RedisLockStore from "./RedisLockStore.ts"
