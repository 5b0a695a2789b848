// Starts Swagger UI; its own start-up script is inline, which our policy forbids.
window.SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, layout: "BaseLayout", presets: [window.SwaggerUIBundle.presets.apis] });
