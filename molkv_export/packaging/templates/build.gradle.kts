plugins {
    id("com.android.asset-pack")
}

assetPack {
    packName.set("{{ part.name }}")
    dynamicDelivery {
        deliveryType.set("{{ part.delivery }}")
    }
}
