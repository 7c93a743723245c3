import tseslint from "typescript-eslint";

export default tseslint.config(
    { ignores: ["dist/", ".build/", "node_modules/"] },
    ...tseslint.configs.strictTypeChecked,
    ...tseslint.configs.stylisticTypeChecked,
    {
        languageOptions: { parserOptions: { projectService: { allowDefaultProject: ["*.js", "*.mjs"] } } },
        linterOptions: { reportUnusedDisableDirectives: "error" },
        rules: {
            // An index is checked where it is computed; `!` after an index says so (noUncheckedIndexedAccess).
            "@typescript-eslint/no-non-null-assertion": "off",
            "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true, allowBoolean: true }],
            "@typescript-eslint/prefer-for-of": "off",
            "@typescript-eslint/consistent-type-imports": "error",
        },
    },
    { files: ["**/*.js", "**/*.mjs"], ...tseslint.configs.disableTypeChecked },
);
