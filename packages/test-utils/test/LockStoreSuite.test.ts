import * as LockStore from "@effect-lock/core/LockStore"
import { LockStoreSuite } from "../src/index.ts"

LockStoreSuite.suite("the memory store", LockStore.layerMemory)
