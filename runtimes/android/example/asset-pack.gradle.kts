plugins { id("com.android.asset-pack") }

assetPack {
    packName.set(project.name)
    dynamicDelivery { deliveryType.set("install-time") }
}
